"""Running one node in this process, from its configuration to its exit code.

The law: whatever keeps a node from starting is told in one line that says what to do about it.
"""

from __future__ import annotations

import asyncio

from ..bus.loop_socket import BindFailed
from ..protocols.registry import BadPlugin, BrokenDistribution
from ..protocols.snapshot import DamagedSnapshot
from . import journal
from .configuration import NodeConfiguration
from .disk import DirectoryInUse, DiskError
from .identity import ForeignDirectory, UnreadableIdentity
from .process import EXIT_DISK, EXIT_REFUSED, NodeProcess
from .wal import CorruptLog, ForeignLog

EXIT_FAULT, EXIT_DATA = 1, 65


def run(configuration: NodeConfiguration) -> int:
    """Run a node until it is told to stop; the exit code. Faults are told on standard error."""
    journal.begin(configuration.name, configuration.log_level, configuration.log_format)

    async def serve() -> int:
        return await NodeProcess(configuration, asyncio.get_running_loop()).run()

    try:
        return asyncio.run(serve())
    except (BindFailed, DirectoryInUse) as error:
        code, reason = EXIT_FAULT, str(error)
    except (
        CorruptLog,
        ForeignLog,
        DamagedSnapshot,
        ForeignDirectory,
        UnreadableIdentity,
    ) as error:
        code, reason = EXIT_DATA, str(error)
    except DiskError as error:
        code, reason = EXIT_DISK, str(error)
    except (BadPlugin, BrokenDistribution) as error:
        code, reason = EXIT_REFUSED, str(error)
    except PermissionError as error:
        text = "give this user the directory, or name another one with --data"
        code, reason = EXIT_FAULT, f"{error}; {text}"
    journal.say(journal.error, "stop", reason=reason, exit_code=code)
    return code
