"""Clients and their process: signals, forks, exits, blocked threads, and what is lost."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import FrameType

import pytest
from processes import DEADLINE_S, clean_environment, until

import coterie

names = (f"process/{number}" for number in count())


@pytest.fixture
def name() -> str:
    """A lock nobody else uses."""
    return next(names)


@pytest.fixture
def watcher(cluster: coterie.LocalCluster) -> Iterator[coterie.Client]:
    with cluster.client() as client:
        yield client


@pytest.fixture
def paused(cluster: coterie.LocalCluster) -> Iterator[coterie.LocalCluster]:
    """The cluster, to be paused by the test; it goes on afterwards."""
    yield cluster
    for node in range(3):
        cluster.resume(node)


def program(cluster: coterie.LocalCluster, source: str, name: str) -> subprocess.Popen[str]:
    """A user's program; `c` is a client and `lock` one of its locks."""
    begin = (
        "import asyncio, os, signal, sys, threading, coterie\n"
        f"lock_name = {name!r}\nc = coterie.Client()\nlock = c.lock(lock_name)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-c", begin + source],
        env=clean_environment(COTERIE_ENDPOINTS=",".join(cluster.endpoints)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        output, complaints = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return process.returncode, output, complaints


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def claims(client: coterie.Client, name: str) -> tuple[int, int]:
    """How many hold the lock, and how many wait for it."""
    found = [lock for lock in client.locks(name) if lock.name == name]
    return (len(found[0].holders), len(found[0].waiters)) if found else (0, 0)


def test_ctrl_c_ends_a_wait_and_leaves_nothing(
    cluster: coterie.LocalCluster, watcher: coterie.Client, name: str
) -> None:
    source = """
try:
    lock.acquire()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.readline()
    print(lock.acquire(), flush=True)  # the client is as good as before
"""
    held = watcher.lock(name)
    held.acquire()
    process = program(cluster, source, name)
    try:
        until(lambda: claims(watcher, name) == (1, 1), "the program waits")
        process.send_signal(signal.SIGINT)
        assert line(process) == "interrupted"
        until(lambda: claims(watcher, name) == (1, 0), "nobody waits any more")
        held.release()
        assert claims(watcher, name) == (0, 0)
        code, output, complaints = ended_after(process, "\n")
    finally:
        process.kill()
    assert (code, output) == (0, "True\n"), complaints
    assert claims(watcher, name) == (0, 0)


def test_no_ctrl_c_at_any_moment_leaves_the_lock_held(
    cluster: coterie.LocalCluster, watcher: coterie.Client, name: str
) -> None:
    """Signals strike acquire, body and release; what `with` took is given back."""
    source = """
interrupted, struck, armed = 0, False, False
def strike(number, frame):
    global struck, armed
    struck = True
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, strike)
print("ready", flush=True)
while interrupted < 150:
    try:
        armed = True
        while not struck:
            with lock:
                pass
        armed = False
    except KeyboardInterrupt:
        pass
    struck = False
    interrupted += 1
    print(interrupted, flush=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("held", len(lock._held), flush=True)
sys.stdin.readline()
"""
    process = program(cluster, source, name)
    try:
        assert line(process) == "ready"
        pauses = random.Random(1)
        for number in range(1, 151):
            end = time.monotonic() + pauses.random() * 0.004
            while time.monotonic() < end:
                pass
            process.send_signal(signal.SIGINT)
            assert line(process) == str(number)
        assert line(process) == "held 0"
        until(lambda: claims(watcher, name) == (0, 0), "nothing is held")
        code, _, complaints = ended_after(process, "\n")
        assert code == 0, complaints
    finally:
        process.kill()


@pytest.mark.parametrize("by", ["with", "release"])
def test_an_interrupt_wherever_python_looks_for_signals(
    cluster: coterie.LocalCluster, watcher: coterie.Client, name: str, by: str
) -> None:
    """CPython runs a signal's handler at the start of a function and after a call of a C
    function. The only such place that cannot be guarded is the very start of `__exit__`, or of
    `release` where the program calls it."""
    moment = 0
    left = 0

    def strike(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        code = frame.f_code
        ours = code.co_filename.endswith(
            ("clients/lock.py", "clients/holding.py", "clients/runner.py")
        )
        if event not in ("call", "c_return") or not (ours or "asyncio" in code.co_filename):
            return
        if event == "call" and code.co_name == ("__exit__" if by == "with" else "release"):
            return
        left -= 1
        if left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with cluster.client() as client:
        lock = client.lock(name)
        with lock:
            pass
        while left <= 0:
            moment += 1
            left = moment
            if by == "release":
                lock.acquire()
            sys.setprofile(strike)
            try:
                if by == "release":
                    lock.release()
                else:
                    with lock:
                        pass
            except KeyboardInterrupt:
                pass
            finally:
                sys.setprofile(None)
            assert not any(lock._held.values()), moment
            with lock:  # the client is as good as before, and nothing of the name is held
                assert claims(watcher, name)[0] == 1
    assert moment > 15
    assert claims(watcher, name) == (0, 0)


def ended_after(process: subprocess.Popen[str], line: str) -> tuple[int, str, str]:
    output, complaints = process.communicate(line, timeout=DEADLINE_S)
    return process.returncode, output, complaints


@pytest.mark.parametrize(
    "source",
    [
        "lock.acquire()",
        "lock.acquire(); sys.exit(0)",
        "asyncio.run(coterie.AsyncClient().lock(lock_name).acquire())",
        "threading.Thread(target=lock.acquire).start()",
    ],
    ids=["end", "exit", "async", "thread"],
)
def test_a_forgotten_close_frees_the_locks_at_once(
    cluster: coterie.LocalCluster, watcher: coterie.Client, name: str, source: str
) -> None:
    code, _, complaints = ended(program(cluster, source, name))
    assert code == 0, complaints
    assert claims(watcher, name) == (0, 0)


def test_an_exit_without_a_cluster_takes_no_longer_than_a_second(
    paused: coterie.LocalCluster, name: str
) -> None:
    process = program(paused, "lock.acquire(); print(1, flush=True); sys.stdin.readline()", name)
    try:
        assert line(process) == "1"
        for node in range(3):
            paused.pause(node)
        begun = time.monotonic()
        code, _, complaints = ended_after(process, "\n")
        assert code == 0, complaints
        assert time.monotonic() - begun < 10.0  # generous: this machine may be busy
    finally:
        process.kill()


def test_a_forked_child_raises_and_ends_nothing(
    cluster: coterie.LocalCluster, watcher: coterie.Client, name: str
) -> None:
    source = """
unused = coterie.Client()
grant = lock.__enter__()
child = os.fork()
if not child:
    refused = 0
    for use in (lock.acquire, c.locks, unused.locks, unused.lock("x").acquire):
        try:
            use()
        except coterie.CoterieError as error:
            refused += "fork" in str(error)
    c.close()
    unused.close()
    mine = coterie.Client()
    other = mine.lock(lock_name + "/child").acquire()
    mine.close()
    sys.exit(10 * refused + 1 if grant.lost and other else 99)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
grant.ensure_held()
print(code, lock.locked(), flush=True)
sys.stdin.readline()
lock.release()
"""
    process = program(cluster, source, name)
    try:
        assert line(process) == "41 True"
        assert claims(watcher, name) == (1, 0)
        code, _, complaints = ended_after(process, "\n")
        assert code == 0, complaints
        assert claims(watcher, name) == (0, 0)
    finally:
        process.kill()


def test_a_killed_program_frees_its_locks_when_its_session_expires(
    cluster: coterie.LocalCluster, watcher: coterie.Client, name: str
) -> None:
    source = """
short = coterie.Client(session_ttl=1.0).lock(lock_name)
short.acquire()
print(short.token, flush=True)
sys.stdin.readline()
"""
    process = program(cluster, source, name)
    token = int(line(process))
    process.kill()
    ended(process)
    with watcher.lock(name, timeout=DEADLINE_S) as grant:
        assert grant.token > token


def test_a_blocked_program_thread_loses_nothing(
    cluster: coterie.LocalCluster, watcher: coterie.Client, name: str
) -> None:
    with cluster.client(session_ttl=1.0) as client, client.lock(name) as grant:
        session = client._shell.core.session  # type: ignore[union-attr]
        assert session is not None
        end = session.lost_at + 1.0
        until(lambda: session.lost_at > end, "renewals far beyond the first ttl")
        grant.ensure_held()
        assert claims(watcher, name) == (1, 0)


def test_a_loss_is_told_and_raised(
    paused: coterie.LocalCluster, watcher: coterie.Client, name: str
) -> None:
    told = threading.Event()
    threads: list[str] = []
    with paused.client(session_ttl=1.0, timeout=1.0) as client:
        lock = client.lock(name)

        def hear() -> None:
            threads.append(threading.current_thread().name)
            told.set()

        with pytest.raises(coterie.LockLost), lock as grant:
            grant.on_lost(hear)
            for node in range(3):
                paused.pause(node)
            until(told.is_set, "the loss is told")
            assert grant.lost and lock.lost
            with pytest.raises(coterie.LockLost, match=name):
                grant.ensure_held()
            again = threading.Event()
            grant.on_lost(again.set)
            assert again.wait(DEADLINE_S)
            for node in range(3):
                paused.resume(node)
        assert threads != [threading.current_thread().name]
        with pytest.raises(RuntimeError):
            lock.release()
        with lock as later:
            assert later.token > grant.token
        assert grant.lost and not later.lost


def test_a_body_that_raises_after_a_loss_keeps_its_exception(
    paused: coterie.LocalCluster, name: str
) -> None:
    async def run() -> None:
        async with paused.async_client(session_ttl=1.0) as client:
            lost = asyncio.Event()
            with pytest.raises(KeyError) as caught:
                async with client.lock(name) as grant:
                    grant.on_lost(lost.set)
                    for node in range(3):
                        paused.pause(node)
                    await asyncio.wait_for(lost.wait(), DEADLINE_S)
                    for node in range(3):
                        paused.resume(node)
                    raise KeyError("the body's")
            assert any("LockLost" in note for note in caught.value.__notes__)

    asyncio.run(run())


def test_a_handler_may_use_the_same_client(paused: coterie.LocalCluster, name: str) -> None:
    result: list[bool] = []
    done = threading.Event()
    with paused.client(session_ttl=1.0) as client:
        lock = client.lock(name)
        lock.acquire()

        def handle() -> None:
            result.append(client.lock(name).acquire(timeout=DEADLINE_S))
            done.set()

        lock.on_lost(handle)
        for node in range(3):
            paused.pause(node)
        until(lambda: lock.lost, "the lock is lost")
        for node in range(3):
            paused.resume(node)
        assert done.wait(DEADLINE_S)
        assert result == [True]


def test_a_sync_call_on_the_loops_thread_raises(cluster: coterie.LocalCluster) -> None:
    with cluster.client() as client:
        client.locks()
        loop = client._runner._loop
        assert loop is not None
        raised: list[BaseException] = []
        done = threading.Event()

        def call() -> None:
            for use in (client.locks, client.lock("a").acquire, client.close):
                try:
                    use()
                except RuntimeError as error:
                    raised.append(error)
            done.set()

        loop.call_soon_threadsafe(call)
        assert done.wait(DEADLINE_S)
        assert len(raised) == 3


def test_a_wait_goes_on_through_a_leader_change(
    paused: coterie.LocalCluster, watcher: coterie.Client, name: str
) -> None:
    held = watcher.lock(name)
    held.acquire()
    with paused.client() as client:
        had = threading.Event()

        def wait() -> None:
            with client.lock(name):
                had.set()

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: claims(watcher, name) == (1, 1), "a waiter")
        leader = paused.leader()
        paused.pause(leader)
        held.release()
        assert had.wait(DEADLINE_S)
        thread.join(DEADLINE_S)


def cli(cluster: coterie.LocalCluster, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "coterie", *arguments],
        cwd=cwd,
        env=clean_environment(COTERIE_ENDPOINTS=",".join(cluster.endpoints)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--", "true"], 0, ""),
        (["--", "sh", "-c", "exit 7"], 7, ""),
        (["--", "sh", "-c", "kill -9 $$"], 137, ""),
        (["--", "sh", "-c", 'test "$COTERIE_LOCK_TOKEN" -gt 0'], 0, ""),
        (["--", "no-such-program"], 127, "no-such-program"),
        (["--timeout", "-1", "--", "true"], 64, "--timeout"),
        (["--no-such-option"], 64, "--no-such-option"),
    ],
)
def test_lock_exits_with_the_commands_code(
    cluster: coterie.LocalCluster,
    tmp_path: Path,
    name: str,
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    found, _, complaints = ended(cli(cluster, "lock", name, *arguments, cwd=tmp_path))
    assert found == code, complaints
    assert says in complaints


def test_lock_exits_75_in_time_and_64_for_a_bad_name(
    cluster: coterie.LocalCluster, watcher: coterie.Client, tmp_path: Path, name: str
) -> None:
    with watcher.lock(name):
        code, _, complaints = ended(
            cli(cluster, "lock", name, "--timeout", "0.1", "--", "true", cwd=tmp_path)
        )
        assert code == 75 and "locks ls" in complaints
        assert claims(watcher, name) == (1, 0)
    assert ended(cli(cluster, "lock", "..", "--", "true", cwd=tmp_path))[0] == 64


def test_lock_exits_69_without_a_quorum(
    paused: coterie.LocalCluster, tmp_path: Path, name: str
) -> None:
    for node in range(3):
        paused.pause(node)
    code, _, complaints = ended(
        cli(paused, "lock", name, "--timeout", "1", "--", "true", cwd=tmp_path)
    )
    assert code == 69 and "0 of 3 nodes answer" in complaints


def test_lock_without_a_command_holds_until_a_signal(
    cluster: coterie.LocalCluster, watcher: coterie.Client, tmp_path: Path, name: str
) -> None:
    process = cli(cluster, "lock", name, cwd=tmp_path)
    assert int(line(process)) > 0
    assert claims(watcher, name) == (1, 0)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0
    assert claims(watcher, name) == (0, 0)


def test_a_signal_reaches_the_command(
    cluster: coterie.LocalCluster, watcher: coterie.Client, tmp_path: Path, name: str
) -> None:
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    process = cli(cluster, "lock", name, "--", "sh", "-c", script, cwd=tmp_path)
    assert line(process) == "ready"
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 5
    assert claims(watcher, name) == (0, 0)


def test_a_signal_ends_the_waiting(
    cluster: coterie.LocalCluster, watcher: coterie.Client, tmp_path: Path, name: str
) -> None:
    with watcher.lock(name):
        process = cli(cluster, "lock", name, "--", "true", cwd=tmp_path)
        until(lambda: claims(watcher, name) == (1, 1), "the command waits")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 128 + signal.SIGTERM
        assert claims(watcher, name) == (1, 0)


def test_a_command_ends_when_its_lock_is_lost(
    paused: coterie.LocalCluster, watcher: coterie.Client, tmp_path: Path, name: str
) -> None:
    script = "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    process = cli(paused, "lock", name, "--", "sh", "-c", script, cwd=tmp_path)
    assert line(process) == "ready"
    for node in range(3):
        paused.pause(node)
    code, output, _ = ended(process)
    assert (code, output) == (76, "told\n")


def test_locks_are_listed(
    cluster: coterie.LocalCluster, watcher: coterie.Client, tmp_path: Path, name: str
) -> None:
    with watcher.lock(name) as grant:
        code, table, _ = ended(cli(cluster, "locks", "ls", name, cwd=tmp_path))
        assert code == 0 and table.splitlines()[1].split()[:3] == [
            name,
            "exclusive",
            str(grant.token),
        ]
        code, listed, _ = ended(cli(cluster, "locks", "ls", "--json", name, cwd=tmp_path))
        assert code == 0 and f'"token": {grant.token}' in listed
        code, edges, _ = ended(cli(cluster, "locks", "graph", "--json", cwd=tmp_path))
        assert code == 0 and edges == "[]\n"
