"""A whole cluster on this machine, for tests and for a first look: `LocalCluster`.

The law: the nodes are real processes with their own ports and directories, run by the same command
as anywhere else. Nothing of them is left behind, however the program ends (`launch.py`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..clients.errors import CoterieError, Unavailable
from ..protocols.plugin import CONTROL, GroupId
from ..protocols.session.messages import Locate
from .administration import Administration
from .ask import NodeAsker, await_leader, located
from .launch import Launch, NotRunning
from .plans import DirectoryInUse, DirectoryLock, NodePlan, PortInUse, check_ports, keep, kept
from .ports import find_free, is_free

if TYPE_CHECKING:
    from ..clients.aio import AsyncClient
    from ..clients.sync import Client

START_WAIT_S = 30.0
"""How long a cluster, or a node, may take to serve; on two idle cores it is below two seconds."""

START_ATTEMPTS = 5
"""Starts with new ports, when another program takes one between the look and the bind."""

JOIN_WAIT_S = 60.0
"""How long a node that was added may take to be filled."""

LEAVE_WAIT_S = 300.0
"""How long the partitions of a node that is removed may take to move away."""

LOOK_S = 0.02
NODES_MAX = 15


class ClusterClosed(CoterieError, RuntimeError):
    """The cluster does not run: use it in a `with` block, or between start() and close()."""


class NodeNotRunning(CoterieError, RuntimeError):
    """The node has ended; `restart(i)` starts it again."""


class LocalCluster:
    """Node processes on this machine.

    Used with `with`, or `start()` and `close()`. Without `data_dir` the data live in a temporary
    directory and go with the cluster; with it they stay and are found again. `env`: further
    environment variables of the nodes. Nodes are numbered from 0 and named node1, node2, …;
    node i keeps its data in `data_dir`/node<i+1> and its messages in a .log file beside it. The
    number of a node that was removed is not used again, also when the data are opened again.

    Raises `Unavailable` when the nodes do not serve in time; the text has their last words.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        store: str = "embedded",
        env: Mapping[str, str] | None = None,
    ) -> None:
        if not 1 <= nodes <= NODES_MAX:
            raise ValueError(f"nodes={nodes}: 1 to {NODES_MAX} run on one machine")
        if store != "embedded":
            raise ValueError(f"store={store!r}: only 'embedded' is there yet")
        self._nodes = nodes
        self._given = None if data_dir is None else Path(data_dir).absolute()
        self._env = dict(env or {})
        self._launch: Launch | None = None
        self._lock: DirectoryLock | None = None

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._launch is None else f"in {self._launch.directory}"
        nodes = self._nodes if self._launch is None else len(self._indexes(self._launch))
        return f"<LocalCluster of {nodes} nodes, {state}>"

    # The cluster

    def start(self) -> None:
        """Start all nodes and wait until a leader serves. No effect on a running cluster."""
        if self._launch is not None:
            return
        deadline = time.monotonic() + START_WAIT_S
        for attempt in range(1, START_ATTEMPTS + 1):
            launch = self._new_launch()
            try:
                for index in self._indexes(launch):
                    launch.start(index)
                self._await_start(launch, deadline)
            except BaseException as error:
                taken = self._given is None and isinstance(error, Unavailable) and _taken(launch)
                launch.close(gracefully=False)
                self._release()
                if taken and attempt < START_ATTEMPTS:
                    continue
                raise
            self._launch = launch
            return

    def close(self) -> None:
        """End all nodes; a temporary directory goes too. Idempotent."""
        launch, self._launch = self._launch, None
        if launch is not None:
            launch.close(gracefully=self._given is not None)
            self._release()

    @property
    def endpoints(self) -> list[str]:
        """Where clients reach the nodes, in order of index; those that do not run too, those that
        were removed not."""
        return [plan.endpoint for plan in self._running.plans if not plan.removed]

    @property
    def http(self) -> list[str]:
        """Base URLs of the nodes' HTTP servers, in order of index; those that do not run too."""
        return [plan.http_url for plan in self._running.plans]

    @property
    def data_dir(self) -> Path:
        """The directory that holds one directory for each node."""
        return self._running.directory

    def client(self, **kw: Any) -> Client:
        """A `Client` of this cluster; takes the keywords of `Client`."""
        from ..clients.sync import Client

        return Client(self.endpoints, **kw)

    def async_client(self, **kw: Any) -> AsyncClient:
        """An `AsyncClient` of this cluster; takes the keywords of `AsyncClient`."""
        from ..clients.aio import AsyncClient

        return AsyncClient(self.endpoints, **kw)

    def leader(self, group: GroupId = CONTROL) -> int:
        """The index of the leader of a group, as it says itself; waits for an election to end.

        Raises `Unavailable` if none is elected within some seconds."""
        launch = self._running
        names = [plan.name for plan in launch.plans]
        deadline = time.monotonic() + START_WAIT_S
        with Administration(self.endpoints) as cluster:
            while time.monotonic() < deadline:
                found = cluster.leader(group)
                if found in names:
                    return names.index(found)
                partitions = cluster.ring().partitions if group != CONTROL else 0
                if partitions and not 0 <= group <= partitions:
                    raise ValueError(f"group={group}: this cluster has groups 0 to {partitions}")
                time.sleep(LOOK_S)
        raise Unavailable(
            f"no leader of group {group} for {START_WAIT_S:g} s; {self._words(launch)}"
        )

    # One node

    def kill(self, i: int) -> None:
        """SIGKILL node i and wait until it has ended."""
        launch = self._running
        with _not_running():
            launch.kill(self._index(i))

    def stop(self, i: int) -> None:
        """SIGTERM node i (it hands its leadership over) and wait until it has ended."""
        launch = self._running
        with _not_running():
            launch.stop(self._index(i))

    def pause(self, i: int) -> None:
        """SIGSTOP node i: it keeps its connections and does nothing."""
        launch = self._running
        with _not_running():
            launch.pause(self._index(i))

    def resume(self, i: int) -> None:
        """SIGCONT node i."""
        launch = self._running
        with _not_running():
            launch.resume(self._index(i))

    def restart(self, i: int) -> None:
        """Start node i again with the same command, stopping it first if it runs; wait until it
        answers. It may still have to catch up, and without a majority nobody leads."""
        launch, index = self._running, self._index(i)
        if launch.running(index):
            launch.stop(index)
        launch.start(index)
        self._await_answer(launch, index)

    def pid(self, i: int) -> int:
        """The process id of node i."""
        launch = self._running
        with _not_running():
            return launch.pid(self._index(i))

    def add_node(self) -> int:
        """Start one more node and let it join; its index. It then follows as a voter, or as a
        learner where there are voters enough; its share of the partitions moves to it from now on.

        Raises `Unavailable` if the cluster does not take it on in time."""
        launch = self._running
        if len(self._indexes(launch)) >= NODES_MAX:
            raise ValueError(f"{NODES_MAX} nodes are as many as run on one machine")
        client, peer, publish, http = find_free(4)
        plan = NodePlan(f"node{len(launch.plans) + 1}", client, peer, publish, http)
        with Administration(self.endpoints, START_WAIT_S) as cluster:
            index = launch.add(plan)
            try:
                cluster.add(plan.name, plan.endpoint, *plan.peer_endpoints)
                self._keep(launch)
                launch.start(index)
                self._await_answer(launch, index)
                self._await_member(launch, cluster, index)
            except BaseException:
                launch.remove(index)
                self._keep(launch)
                with contextlib.suppress(CoterieError):
                    cluster.remove(plan.name)
                raise
        return index

    def remove_node(self, i: int) -> None:
        """Let node i leave for good: its partitions move away, then its process ends. Its data
        stay where they are and are of no use any more. A node that is dead is removed as well.

        Raises `Unavailable` if that does not happen in time, ValueError for the last node."""
        launch, index = self._running, self._index(i)
        if len(self._indexes(launch)) == 1:
            raise ValueError(f"node {i} is the last one; close() ends the cluster")
        name = launch.plans[index].name
        others = [plan.endpoint for plan in launch.plans if not plan.removed and plan.name != name]
        with Administration(others, START_WAIT_S) as cluster:
            cluster.remove(name)
            deadline = time.monotonic() + LEAVE_WAIT_S
            while cluster.member(name) is not None:
                if time.monotonic() > deadline:
                    text = f"{name} still holds partitions after {LEAVE_WAIT_S:g} s"
                    raise Unavailable(f"{text}; it goes on leaving, see 'coterie member ls'")
                time.sleep(LOOK_S)
        launch.remove(index)
        self._keep(launch)

    # Within

    @property
    def _running(self) -> Launch:
        if self._launch is None:
            raise ClusterClosed("the cluster does not run; use `with LocalCluster() as cluster:`")
        return self._launch

    def _index(self, i: int) -> int:
        plans = self._running.plans
        if not 0 <= i < len(plans):
            raise IndexError(f"node {i}: this cluster has nodes 0 to {len(plans) - 1}")
        if plans[i].removed:
            raise IndexError(f"node {i} was removed from this cluster")
        return i

    @staticmethod
    def _indexes(launch: Launch) -> list[int]:
        """Of the nodes that were not removed."""
        return [index for index, plan in enumerate(launch.plans) if not plan.removed]

    def _keep(self, launch: Launch) -> None:
        if self._given is not None:
            keep(self._given, launch.plans)

    def _new_launch(self) -> Launch:
        if self._given is None:
            directory = Path(tempfile.mkdtemp(prefix="coterie-"))
            return Launch(_new_plans(self._nodes), directory, env=self._env, remove=True)
        self._given.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = DirectoryLock(self._given)
            return Launch(_kept_plans(self._given, self._nodes), self._given, env=self._env)
        except BaseException as error:
            self._release()
            if not isinstance(error, DirectoryInUse | PortInUse):
                raise
            raise Unavailable(f"{error}; end it, or take another data_dir") from error

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _await_start(self, launch: Launch, deadline: float) -> None:
        def all_run() -> bool:
            return all(launch.running(index) for index in self._indexes(launch))

        endpoints = [plan.endpoint for plan in launch.plans if not plan.removed]
        with NodeAsker() as asker:
            if await_leader(asker, endpoints, deadline, everybody=True, go_on=all_run) is None:
                raise Unavailable(f"the cluster does not start; {self._words(launch)}")

    @staticmethod
    def _await_answer(launch: Launch, index: int) -> None:
        endpoint = launch.plans[index].endpoint
        deadline = time.monotonic() + START_WAIT_S
        with NodeAsker() as asker:
            while time.monotonic() < deadline and launch.running(index):
                if located(asker.ask([endpoint], Locate())):
                    return
        raise Unavailable(f"the node does not answer; {launch.report(index)}")

    @staticmethod
    def _await_member(launch: Launch, cluster: Administration, index: int) -> None:
        name = launch.plans[index].name
        deadline = time.monotonic() + JOIN_WAIT_S
        while time.monotonic() < deadline and launch.running(index):
            row = cluster.member(name)
            if row is not None and row.state == "member" and (row.voter or cluster.caught_up(name)):
                return
            time.sleep(LOOK_S)
        raise Unavailable(f"{name} does not join; {launch.report(index)}")

    def _words(self, launch: Launch) -> str:
        reports = (launch.report(index) for index in self._indexes(launch))
        return "\n  ".join(["the nodes:", *reports])


@contextlib.contextmanager
def _not_running() -> Iterator[None]:
    try:
        yield
    except NotRunning as error:
        raise NodeNotRunning(str(error)) from None


def _taken(launch: Launch) -> bool:
    """True if a node ended and one of its ports is in use: then others may do better."""
    return any(
        not is_free(port)
        for index, plan in enumerate(launch.plans)
        if not launch.running(index)
        for port in plan.ports
    )


def _new_plans(nodes: int) -> list[NodePlan]:
    ports = iter(find_free(4 * nodes))
    return [
        NodePlan(f"node{n}", next(ports), next(ports), next(ports), next(ports))
        for n in range(1, nodes + 1)
    ]


def _kept_plans(directory: Path, nodes: int) -> list[NodePlan]:
    """The plan kept in the directory, for the nodes know each other by it; else a new one."""
    plans = kept(directory)
    if plans is None:
        plans = _new_plans(nodes)
        keep(directory, plans)
    there = sum(not plan.removed for plan in plans)
    if there != nodes:
        text = f"{directory} holds a cluster of {there}; start that, then add_node, remove_node"
        raise ValueError(f"nodes={nodes}: {text}")
    check_ports(plans)
    return plans
