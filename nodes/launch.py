"""Node processes on this machine, tied to the process that started them.

The law: a node is a child of the process that wants it, so its id is never mistaken for another's;
and it never outlives that process: it ends when the pipe it inherited does, and the watcher
(`watcher.py`) sees to it where it cannot.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import watcher
from .plans import NodePlan, peers_option

TERM_WAIT_S = 5.0
"""How long a node may take to end after SIGTERM; then it is killed."""

LOG_BYTES = 1024 * 1024
"""A node's standard error is put aside at a start when it has grown past this."""

LOG_LINES = 12
"""Last lines of a node's standard error shown with an error."""


class NotRunning(RuntimeError):
    """The node's process has ended or was not started."""


class Launch:
    """The processes of one local cluster; node i keeps its data in `directory`/<name>.

    Different nodes may be handled by different threads. `remove`: the directory goes with the
    cluster. `options` are further flags for every node, `env` further environment variables.
    """

    def __init__(
        self,
        plans: Sequence[NodePlan],
        directory: Path,
        *,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        remove: bool = False,
    ) -> None:
        self.plans = list(plans)
        self.directory = directory
        self._remove = remove
        self._options = tuple(options)
        self._environ = environment(env)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._paused: set[int] = set()
        self._process_id = os.getpid()
        self._owner, self._owner_held = os.pipe()
        self._alive, self._alive_held = os.pipe()
        arguments = [sys.executable, "-I", "-S", watcher.__file__]
        arguments += [str(self._owner), str(self._alive), str(TERM_WAIT_S)]
        arguments += [str(directory)] if remove else []
        self._watcher = subprocess.Popen(
            arguments,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(self._owner, self._alive),
            process_group=0,
        )
        _launched.add(self)

    def add(self, plan: NodePlan) -> int:
        """Another node, not started yet; its index."""
        self.plans.append(plan)
        return len(self.plans) - 1

    def remove(self, index: int) -> None:
        """End the node if it runs; the others do not know it any more when they start again."""
        self.plans[index] = self.plans[index]._replace(removed=True)
        if self.running(index):
            self.stop(index)

    def start(self, index: int) -> None:
        """Start node `index`; it need not serve yet when this returns."""
        plan = self.plans[index]
        home = self.directory / plan.name
        arguments = [sys.executable, "-P", "-m", __package__.partition(".")[0], "node"]
        arguments += ["--name", plan.name, "--peers", peers_option(self.plans)]
        arguments += ["--data", str(home.absolute()), "--bind", plan.address]
        arguments += ["--advertise", f"127.0.0.1:{plan.client}"]
        arguments += ["--http-listen", "127.0.0.1", "--http-port", str(plan.http)]
        arguments += ["--parent-pipe", str(self._owner), *self._options]
        path = self._log(index)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.old"))
        with open(path, "ab") as log:
            self._processes[index] = subprocess.Popen(
                arguments,
                cwd=self.directory,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self._owner, self._alive_held),
                process_group=self._watcher.pid,
            )
        self._paused.discard(index)

    def running(self, index: int) -> bool:
        """True until the process has ended; a paused one runs."""
        process = self._processes.get(index)
        return process is not None and process.poll() is None

    def paused(self, index: int) -> bool:
        return index in self._paused and self.running(index)

    def exit_code(self, index: int) -> int | None:
        """The exit code, -n if signal n ended it; None while it runs or before it was started."""
        process = self._processes.get(index)
        return None if process is None else process.poll()

    def pid(self, index: int) -> int:
        return self._running(index).pid

    def kill(self, index: int) -> None:
        """SIGKILL, and wait until it has ended."""
        process = self._running(index)
        process.kill()
        process.wait()

    def stop(self, index: int) -> None:
        """SIGTERM, and wait until it has ended; after some seconds SIGKILL."""
        self.terminate(index)
        self.await_end(index, TERM_WAIT_S)

    def terminate(self, index: int) -> None:
        """SIGTERM, without waiting. A paused node goes on, to be able to end."""
        process = self._running(index)
        process.terminate()
        self.resume(index)

    def await_end(self, index: int, timeout_s: float) -> None:
        """Wait until the process has ended; kill it when the time is up."""
        process = self._processes[index]
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pause(self, index: int) -> None:
        """SIGSTOP, and wait until it has stopped."""
        process = self._running(index)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._paused.add(index)

    def resume(self, index: int) -> None:
        """SIGCONT; no effect on a node that is not paused."""
        self._running(index).send_signal(signal.SIGCONT)
        self._paused.discard(index)

    def last_lines(self, index: int) -> str:
        """The end of what the node wrote to standard error."""
        try:
            text = self._log(index).read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-LOG_LINES:])

    def report(self, index: int) -> str:
        """How the node is and the last it said, in words."""
        code = self.exit_code(index)
        state = "runs" if self.running(index) else f"ended with {exit_words(code)}"
        lines = self.last_lines(index).replace("\n", "\n    ")
        return f"{self.plans[index].name} {state}" + (f":\n    {lines}" if lines else "")

    def close(self, *, gracefully: bool) -> None:
        """End all nodes (after closing their logs if `gracefully`, else by SIGKILL), then the
        watcher and with it the directory if that goes. Idempotent; in a forked child it does
        nothing."""
        if self._owner_held < 0 or os.getpid() != self._process_id:
            return
        if not gracefully:
            for process in self._processes.values():
                process.kill()
        self.let_go()  # the nodes see it, close their logs and end; the watcher wakes paused ones
        try:
            for index in self._processes:
                self.await_end(index, TERM_WAIT_S)
        finally:  # also when the wait is interrupted by an impatient Ctrl-C
            for process in self._processes.values():
                process.kill()
                process.wait()
            for descriptor in (self._owner, self._alive):
                os.close(descriptor)
            self._end_watcher()

    def _end_watcher(self) -> None:
        """It ends by itself when the nodes have; what it cannot do any more is done here."""
        try:
            self._watcher.wait(TERM_WAIT_S)
        except subprocess.TimeoutExpired:
            self._watcher.kill()
            self._watcher.wait()
        if self._remove:
            shutil.rmtree(self.directory, ignore_errors=True)

    def let_go(self) -> None:
        """Close this process's ends of the pipes: what a forked child does at once, so that the
        nodes end with the process that started them and not with its last child."""
        if self._owner_held >= 0:
            os.close(self._owner_held)
            os.close(self._alive_held)
            self._owner_held = self._alive_held = -1

    def _running(self, index: int) -> subprocess.Popen[bytes]:
        if not self.running(index):
            code = self.exit_code(index)
            state = "was not started" if code is None else f"has ended with {exit_words(code)}"
            raise NotRunning(f"{self.plans[index].name} {state}; restart it first")
        return self._processes[index]

    def _log(self, index: int) -> Path:
        return self.directory / f"{self.plans[index].name}.log"


def exit_words(code: int | None) -> str:
    """An exit code of subprocess in words."""
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def environment(env: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment, and where it found this package, which need not be installed."""
    environment = {**os.environ, **(env or {})}
    package = Path(__file__).resolve().parents[1]
    for entry in sys.path:
        found = Path(entry or ".") / (__package__.partition(".")[0])
        if found.resolve() == package:
            paths = [str(Path(entry or ".").absolute()), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            break
    return environment


_launched: weakref.WeakSet[Launch] = weakref.WeakSet()


def _forked() -> None:
    for launch in list(_launched):
        launch.let_go()


os.register_at_fork(after_in_child=_forked)
