"""What is asked of the placement plugin, what it writes down, and what its nodes tell each other.

The law: positions in `MESSAGES` are wire codes; append only. Group 0 records who *should* hold a
group; who votes in it stands in the group's own log; its leader reports when the two agree.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from ..plugin import Internal, Message, Operation, Query, Result
from ..records import Member

NODES_MAX = 64
PARTITIONS_MAX = 1_000

MemberState: TypeAlias = Literal["joining", "member", "leaving"]
"""`joining`: added, and not heard of or not recorded in group 0 yet. `leaving`: its groups are
moving away; it is forgotten when the last one has, and with it its place in group 0."""


class AddMember(Operation, frozen=True, tag=0):
    """Let a node join. Asked of group 0 without a session; idempotent. MALFORMED: a bad name or
    endpoint, or one node too many. SETTINGS_DIFFER: the name is in use with other endpoints, or
    that node is leaving. BUSY: the cluster is still being founded. Sent with `not_after_us`, so
    that a late copy does not add a node again that was removed meanwhile."""

    node: str
    client_endpoint: str
    peer_endpoint: str
    publish_endpoint: str


class RemoveMember(Operation, frozen=True, tag=1):
    """Let a node leave for good: its groups move first. Asked of group 0 without a session;
    idempotent: of a node that is not there, or leaving already, too. MALFORMED: the last one.
    `added`, as `MemberRow` tells it, keeps a late copy from removing another node of that name;
    -1: whichever it is."""

    node: str
    added: int = -1


class Changed(Result, frozen=True, tag=2):
    """The change is recorded and begins; `ListMembers` and `DescribeRing` show how far it is."""


class HandOver(Operation, frozen=True, tag=3):
    """Hand the leadership of the request's group to a node. Asked of the group's leader, answered
    at once, not replicated. MALFORMED: that node has no vote in the group. BUSY: it is not up to
    date, or not heard of; retry. Without a reason to stay, the leadership returns to the preferred
    node after half a minute."""

    node: str


class HandingOver(Result, frozen=True, tag=4):
    """It is under way: `Locate` or the status tell whether it came about (it may not)."""


class ListMembers(Query, frozen=True, tag=5):
    """The nodes of the cluster."""


class MemberRow(Message, frozen=True):
    """`incarnation` is 0 until the node was heard of; `voter` is its vote in group 0. `groups` it
    should hold and `holds`, as last reported, without group 0, which every node holds. `added` is
    the operation number of its `AddMember`, 0 for a founding member."""

    node: str
    incarnation: int
    voter: bool
    state: MemberState
    client_endpoint: str
    peer_endpoint: str
    publish_endpoint: str
    groups: tuple[int, ...]
    holds: tuple[int, ...]
    added: int = 0


class MemberList(Result, frozen=True, tag=6):
    """In order of name."""

    members: tuple[MemberRow, ...]


class DescribeRing(Query, frozen=True, tag=7):
    """The partitions: who should hold them and who does."""


class RingRow(Message, frozen=True):
    """`nodes` should hold the group, the preferred primary first; `members` are (node, voter) as
    its leader last reported them; `moving`: the two differ, so that copies are on their way."""

    group: int
    nodes: tuple[str, ...]
    members: tuple[tuple[str, bool], ...]
    moving: bool


class Ring(Result, frozen=True, tag=8):
    """`remaining` counts the groups that move and those that have to, once these have: it falls
    to 0 after a node came or began to leave. `partitions` is 0 too before they are founded."""

    partitions: int
    replication: int
    groups: tuple[RingRow, ...]
    remaining: int


class Found(Internal, frozen=True, tag=9):
    """The partitions begin. `members` are those of group 0 at this point; one with incarnation 0
    was not heard of yet. `placement[i]` are the nodes of group i + 1, the preferred one first."""

    replication: int
    members: tuple[Member, ...]
    placement: tuple[tuple[str, ...], ...]


class Place(Internal, frozen=True, tag=10):
    """These nodes should hold the group from now on, the preferred primary first."""

    group: int
    nodes: tuple[str, ...]


class Report(Internal, frozen=True, tag=11):
    """A group's committed configuration: (node, incarnation, voter) as of the entry at `index`.
    Also of group 0, where it tells that a node joined or is gone."""

    group: int
    index: int
    members: tuple[tuple[str, int, bool], ...]


class Reported(Message, frozen=True, tag=12):
    """From the leader of a group to the leader of group 0, again and again until it is recorded."""

    group: int
    index: int
    members: tuple[tuple[str, int, bool], ...]


MESSAGES: tuple[type[Message], ...] = (
    AddMember, RemoveMember, Changed, HandOver, HandingOver, ListMembers, MemberList, DescribeRing,
    Ring, Found, Place, Report, Reported,
)  # fmt: skip
