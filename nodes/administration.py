"""What an operator asks of a cluster: who its members are, who comes, who goes, who leads.

The law: it knows no more than the cluster says. Every change is idempotent, so it is asked again
through elections until the leader has answered; what the cluster refuses is told in its words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ..clients.errors import Unavailable, error_of
from ..protocols.errors import Code
from ..protocols.placement.messages import (
    AddMember,
    Changed,
    DescribeRing,
    HandingOver,
    HandOver,
    ListMembers,
    MemberList,
    MemberRow,
    RemoveMember,
    Ring,
)
from ..protocols.plugin import CONTROL, Failure, GroupId, Operation, Query, Result
from ..protocols.session.messages import Describe, Described
from .ask import PLACEMENT, NodeAsker, find_leader, find_members, rounds

WAIT_S = 5.0
"""How long a cluster may be without a leader before an operator is told so."""

ANSWER_S = 1.0
"""How long one answer may take: a change is committed by a majority first."""

LATER = (Code.NOT_LEADER, Code.LEADER_LOST, Code.UNKNOWN_GROUP, Code.BUSY)
"""Answers after which the same is asked again."""


CLOSE_ENTRIES = 100
"""A node that is this close behind follows: under load it is never quite up to date."""


class Administration:
    """Questions and changes of one cluster, found at any of `endpoints`. A context manager; to be
    used by one thread. What it raises: `Unavailable` if nobody leads for `wait_s`, `Busy` if the
    cluster could not do it in that time, `CoterieError` or `SettingsDiffer` with its words if it
    will not, ValueError for what is no endpoint."""

    def __init__(self, endpoints: Sequence[str], wait_s: float = WAIT_S) -> None:
        if not endpoints:
            raise ValueError("names no node; write tcp://HOST:PORT,…")
        self._given = list(endpoints)
        self._wait_s = wait_s
        self._asker = NodeAsker()

    def __enter__(self) -> Administration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._asker.close()

    def members(self) -> tuple[MemberRow, ...]:
        """The members, in order of name."""
        found = self._ask_leader(ListMembers())
        assert isinstance(found, MemberList)
        return found.members

    def member(self, name: str) -> MemberRow | None:
        """The member of this name; None if there is none (any more)."""
        return next((row for row in self.members() if row.node == name), None)

    def ring(self) -> Ring:
        """The partitions: who should hold them and who does."""
        found = self._ask_leader(DescribeRing())
        assert isinstance(found, Ring)
        return found

    def add(self, name: str, client: str, peer: str, publish: str) -> None:
        """Let a node join, by its endpoints for clients, for peers and of PUB."""
        found = self._ask_leader(AddMember(name, client, peer, publish))
        assert isinstance(found, Changed)

    def remove(self, name: str) -> None:
        """Let a node leave for good; its groups move away first."""
        found = self._ask_leader(RemoveMember(name))
        assert isinstance(found, Changed)

    def hand_over(self, group: GroupId, name: str) -> None:
        """Hand the leadership of a group to a node; `leaders` tells whether it came about."""
        failure: Failure | None = None
        for timeout_s in rounds(time.monotonic() + self._wait_s):
            endpoints = find_members(self._asker, self._given, timeout_s)
            # Only its leader takes it, and asking everyone finds that one without another question.
            answers = self._asker.ask(endpoints, HandOver(name), plugin=PLACEMENT, group=group)
            for answer in answers.values():
                if isinstance(answer, HandingOver):
                    return
                if isinstance(answer, Failure) and answer.code not in LATER:
                    raise error_of(answer)
                if isinstance(answer, Failure) and answer.code is Code.BUSY:
                    failure = answer
        raise error_of(failure) if failure else self._silent(group)

    def leaders(self) -> dict[GroupId, str]:
        """Who leads which group, as the leaders say themselves; a group without one is missing."""
        return _leaders(self.described())

    def leader(self, group: GroupId) -> str | None:
        """Who leads a group, as it says itself, if a majority of those who vote in it answers."""
        names = find_members(self._asker, self._given)

        def leader(answers: dict[str, Result]) -> str | None:
            described = _described(names, answers)
            name = _leaders(described).get(group)
            if name is None:
                return None
            members = described[name]["raft"]["groups"][str(group)]["members"]
            voters = [member["node"] for member in members if member["voter"]]
            heard = sum(voter in described for voter in voters)
            return name if heard > len(voters) // 2 else None

        def enough(answers: dict[str, Result]) -> bool:
            return leader(answers) is not None

        return leader(self._asker.ask(names, Describe(), timeout_s=ANSWER_S / 2, enough=enough))

    def described(self) -> dict[str, dict[str, Any]]:
        """What every node that answers says of itself, by name."""
        names = find_members(self._asker, self._given)
        return _described(names, self._asker.ask(names, Describe(), timeout_s=ANSWER_S / 2))

    def caught_up(self, name: str) -> bool:
        """True if a node has applied in group 0 what any node had committed when it was asked."""
        groups = {
            node: said["raft"]["groups"].get(str(CONTROL)) or {"commit": 0, "applied": 0}
            for node, said in self.described().items()
        }
        goal = max((group["commit"] for group in groups.values()), default=0)
        return name in groups and 0 < goal <= groups[name]["applied"] + CLOSE_ENTRIES

    def _ask_leader(self, message: Query | Operation) -> Result:
        failure: Failure | None = None
        for timeout_s in rounds(time.monotonic() + self._wait_s):
            endpoints = list(find_members(self._asker, self._given, timeout_s))
            found = find_leader(self._asker, endpoints, timeout_s)
            if found is None:
                continue
            endpoint, leader = found
            answer = self._asker.ask(
                [endpoint], message, plugin=PLACEMENT, cluster=leader.cluster, timeout_s=ANSWER_S
            ).get(endpoint)
            if not isinstance(answer, Failure):
                if answer is not None:
                    return answer
            elif answer.code in LATER:
                failure = answer
            else:
                raise error_of(answer)
        if failure is not None and failure.code is Code.BUSY:
            raise error_of(failure)
        raise self._silent(CONTROL)

    def _silent(self, group: GroupId) -> Unavailable:
        where = ", ".join(self._given)
        text = f"no leader of group {group} for {self._wait_s:g} s at {where}; try 'coterie status'"
        return Unavailable(text)


def _described(names: dict[str, str], answers: dict[str, Result]) -> dict[str, dict[str, Any]]:
    return {
        names[endpoint]: json.loads(answer.status)
        for endpoint, answer in answers.items()
        if isinstance(answer, Described)
    }


def _leaders(described: dict[str, dict[str, Any]]) -> dict[GroupId, str]:
    """Who claims to lead a group in the last term that anybody knows of."""
    claims: dict[GroupId, tuple[int, str]] = {}
    for name, said in described.items():
        for number, group in said["raft"]["groups"].items():
            claim = (group["term"], name if group["role"] == "leader" else "")
            claims[int(number)] = max(claims.get(int(number), claim), claim)
    return {group: name for group, (_, name) in sorted(claims.items()) if name}
