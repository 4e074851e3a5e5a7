"""The error codes of coterie: one table for nodes and clients.

The law: a code says whether the operation may have happened. Retries and history checks read
`kind`, never the text. Codes are wire values: append only.

* rejected       it did not and will not happen;
* indeterminate  it may have happened;
* misuse         the program asked for something that has no meaning;
* fatal          the node stops and tells why.
"""

from __future__ import annotations

import enum
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["rejected", "indeterminate", "misuse", "fatal"]


class Code(enum.IntEnum):
    """What went wrong. The client makes a public exception of it (`clients/errors.py`)."""

    NOT_LEADER = 1          # ask the leader (detail: its id, if known); nothing was done here
    LEADER_LOST = 2         # proposed, leadership lost before commit: send again, same sequence
    BUSY = 3                # a limit of the node; retry later
    MALFORMED = 4           # the request has no meaning
    BAD_NAME = 5
    TOO_LARGE = 6
    SESSION_EXPIRED = 7     # the session is unknown or ended
    STALE_REQUEST = 8       # below done_below or past not_after: this copy is not applied
    CANCELLED = 9           # the operation was cancelled before it came
    NOT_HELD = 10           # the grant is not held (any more)
    WOULD_BLOCK = 11        # a try that could not be granted at once
    DEADLOCK = 12
    STALE_TOKEN = 13
    UNKNOWN_PLUGIN = 14
    UNKNOWN_GROUP = 15      # this node does not hold the group
    PERMISSION_DENIED = 16
    SETTINGS_DIFFER = 17    # a name's stored settings differ from those given
    CORRUPT_LOG = 18
    DISK_FAILED = 19
    PLUGINS_DIFFER = 20     # this node lacks a plugin of the cluster, or has one too many
    DISK_FULL = 21
    STATE_DIVERGED = 22     # this node's state is another one than the majority's
    REMOVED = 23            # this node is no member of its cluster any more
    BROKEN_BARRIER = 24
    FULL = 25               # the queue, or the node's memory for queues, takes no more
    STALE_LEASE = 26        # the message was delivered again since, or is gone
    NO_QUEUE = 27           # the queue was never declared, or was deleted
    NO_STORE = 28           # the store behind the cache does not answer; nothing was written
    STORE_UNSURE = 29       # the store behind the cache was asked, and did not answer


KINDS: dict[Code, Kind] = {
    Code.NOT_LEADER: "rejected",
    Code.LEADER_LOST: "indeterminate",
    Code.BUSY: "rejected",
    Code.MALFORMED: "misuse",
    Code.BAD_NAME: "misuse",
    Code.TOO_LARGE: "misuse",
    Code.SESSION_EXPIRED: "rejected",
    Code.STALE_REQUEST: "indeterminate",
    Code.CANCELLED: "rejected",
    Code.NOT_HELD: "rejected",
    Code.WOULD_BLOCK: "rejected",
    Code.DEADLOCK: "rejected",
    Code.STALE_TOKEN: "rejected",
    Code.UNKNOWN_PLUGIN: "misuse",
    Code.UNKNOWN_GROUP: "rejected",
    Code.PERMISSION_DENIED: "rejected",
    Code.SETTINGS_DIFFER: "misuse",
    Code.CORRUPT_LOG: "fatal",
    Code.DISK_FAILED: "fatal",
    Code.PLUGINS_DIFFER: "fatal",
    Code.DISK_FULL: "rejected",
    Code.STATE_DIVERGED: "fatal",
    Code.REMOVED: "fatal",
    Code.BROKEN_BARRIER: "rejected",
    Code.FULL: "rejected",
    Code.STALE_LEASE: "rejected",
    Code.NO_QUEUE: "rejected",
    Code.NO_STORE: "rejected",
    Code.STORE_UNSURE: "indeterminate",
}


def definite(code: Code) -> bool:
    """True if the operation surely did not happen."""
    return KINDS[code] != "indeterminate"
