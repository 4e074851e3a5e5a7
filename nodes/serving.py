"""A node from its configuration to its exit code.

The law: a fault that is known is told in one line that says what to do, and has a code of its own.
"""

from __future__ import annotations

import asyncio
import logging

from ..bus.loop_socket import BindFailed
from ..protocols.registry import BadPlugin, BrokenDistribution
from ..protocols.snapshot import DamagedSnapshot
from .configuration import NodeConfiguration
from .disk import DirectoryInUse, DiskError
from .identity import ForeignDirectory, UnreadableIdentity
from .process import EXIT_DATA, EXIT_DISK, EXIT_FAULT, EXIT_REFUSED, NodeProcess
from .wal import CorruptLog, ForeignLog

logger = logging.getLogger("coterie.node")


def run(configuration: NodeConfiguration) -> int:
    """Run a node until it is told to stop; the exit code. Faults are told on standard error."""
    logging.basicConfig(
        level=configuration.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )

    async def serve() -> int:
        return await NodeProcess(configuration, asyncio.get_running_loop()).run()

    try:
        return asyncio.run(serve())
    except (BindFailed, DirectoryInUse) as error:
        logger.error("%s", error)
        return EXIT_FAULT
    except (
        CorruptLog,
        ForeignLog,
        DamagedSnapshot,
        ForeignDirectory,
        UnreadableIdentity,
    ) as error:
        logger.error("%s", error)
        return EXIT_DATA
    except DiskError as error:
        logger.error("%s", error)
        return EXIT_DISK
    except (BadPlugin, BrokenDistribution) as error:
        logger.error("%s", error)
        return EXIT_REFUSED
