"""`coterie up`: the process that runs a local cluster, and how other commands speak to it.

The law: whoever wants something of a running cluster's nodes asks the process that started them,
for only a parent knows its children for sure. Requests are lines in a named pipe
(`up.control`); what is, and what was answered, stands in `up.json`, replaced as a whole. A node
that dies is reported and not started again unasked.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..protocols.session.messages import Located
from .ask import NodeAsker, await_leader
from .launch import Launch, NotRunning, exit_words
from .plans import NodePlan, is_held

CONTROL_FILE, STATE_FILE = "up.control", "up.json"
START_WAIT_S = 30.0
ANSWER_WAIT_S = 15.0
ANSWERS_KEPT = 16
TICK_S = 1.0
LINE_BYTES = 512
"""A request is shorter: then the pipe keeps it in one piece (PIPE_BUF of POSIX)."""

VERBS = ("down", "kill", "pause", "resume", "restart")


class NoCluster(RuntimeError):
    """No `coterie up` runs on the directory."""


class Refused(RuntimeError):
    """The process that runs the cluster did not do what was asked, or did not answer."""


class Up:
    """The nodes of one directory, run in the foreground until SIGINT, SIGTERM or `down`."""

    def __init__(
        self,
        directory: Path,
        plans: Sequence[NodePlan],
        options: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        """The directory's lock is held and its ports are free; starts the nodes."""
        self._directory = directory
        self._say = say
        self._leaving = False
        self._answers: dict[str, tuple[bool, str]] = {}
        self._reported: dict[int, int] = {}
        self._ready = False
        self._request = b""
        self.launch = Launch(plans, directory, options=options)
        control = directory / CONTROL_FILE
        with contextlib.suppress(FileNotFoundError):
            control.unlink()
        os.mkfifo(control, 0o600)
        # For reading and writing, or the pipe would be at its end whenever no command writes.
        self._control = os.open(control, os.O_RDWR | os.O_NONBLOCK)
        self._wake, self._woken = os.pipe()
        for descriptor in (self._wake, self._woken):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._woken)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        for index in range(len(plans)):
            self.launch.start(index)
        self._keep_state()

    def _on_signal(self, number: int, frame: object) -> None:
        if self._leaving:  # asked twice: at once
            raise KeyboardInterrupt
        self._leaving = True

    def await_ready(self) -> Located | None:
        """Wait until a leader serves; None if that does not happen in time or it is to leave."""
        endpoints = [plan.endpoint for plan in self.launch.plans]
        majority = len(endpoints) // 2 + 1

        def go_on() -> bool:
            self._report_deaths()
            running = sum(map(self.launch.running, range(len(endpoints))))
            return not self._leaving and running >= majority

        with NodeAsker() as asker:
            deadline = time.monotonic() + START_WAIT_S
            leader = await_leader(asker, endpoints, deadline, go_on=go_on)
        self._ready = leader is not None
        self._keep_state()
        return leader

    @property
    def leaving(self) -> bool:
        """True once it was asked to end."""
        return self._leaving

    def serve(self, tick: Callable[[], None] | None = None) -> None:
        """Answer commands and report deaths until asked to leave; `tick` is called about once a
        second meanwhile."""
        period_s = None if tick is None else TICK_S
        while not self._leaving:
            readable, _, _ = select.select([self._wake, self._control], [], [], period_s)
            if self._wake in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 512)
            if self._report_deaths():
                self._keep_state()
            if self._control in readable:
                self._read_requests()
            if tick is not None and not self._leaving:
                tick()

    def close(self) -> None:
        """End all nodes and remove what told of them; a second Ctrl-C ends them by SIGKILL."""
        with contextlib.suppress(KeyboardInterrupt):
            self.launch.close(gracefully=True)
        signal.set_wakeup_fd(-1)
        for name in (CONTROL_FILE, STATE_FILE):
            with contextlib.suppress(FileNotFoundError):
                (self._directory / name).unlink()
        for descriptor in (self._control, self._wake, self._woken):
            os.close(descriptor)

    def _read_requests(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._request += os.read(self._control, 4096)
        *lines, self._request = self._request.split(b"\n")
        self._request = self._request[-LINE_BYTES:]
        for line in lines:
            words = line.decode(errors="replace").split(" ")
            if len(words) == 3 and words[1] in VERBS:
                name, verb, node = words
                self._answers[name] = self._carry_out(verb, node)
                while len(self._answers) > ANSWERS_KEPT:
                    del self._answers[next(iter(self._answers))]
        self._report_deaths()
        self._keep_state()

    def _carry_out(self, verb: str, node: str) -> tuple[bool, str]:
        if verb == "down":
            self._leaving = True
            return True, "ending"
        names = [plan.name for plan in self.launch.plans]
        if node not in names:
            return False, f"no node {node!r}; there are {', '.join(names)}"
        index = names.index(node)
        try:
            if verb == "restart":
                if self.launch.running(index):
                    self.launch.stop(index)
                self._reported.pop(index, None)
                self.launch.start(index)
            else:
                {"kill": self.launch.kill, "pause": self.launch.pause,
                 "resume": self.launch.resume}[verb](index)  # fmt: skip
        except NotRunning as error:
            return False, f"{error}: coterie restart {node}"
        done = {"kill": "killed", "pause": "paused", "resume": "resumed", "restart": "started"}
        self._say(f"{node} {done[verb]}")
        return True, f"{node} {done[verb]}"

    def _report_deaths(self) -> bool:
        """Say, once, which nodes have ended; True if one has."""
        found = False
        for index, plan in enumerate(self.launch.plans):
            code = self.launch.exit_code(index)
            if code is None or self._reported.get(index) == code:
                continue
            self._reported[index] = code
            found = True
            self._say(f"{plan.name} ended with {exit_words(code)}; start it again: "
                      f"coterie restart {plan.name} --data {self._directory}")  # fmt: skip
            if code > 0:
                self._say("    " + self.launch.last_lines(index).replace("\n", "\n    "))
        return found

    def _keep_state(self) -> None:
        nodes = []
        for index, plan in enumerate(self.launch.plans):
            running = self.launch.running(index)
            state = "paused" if self.launch.paused(index) else "running" if running else "ended"
            pid = self.launch.pid(index) if running else None
            nodes.append({"name": plan.name, "endpoint": plan.endpoint, "pid": pid, "state": state})
        content = {
            "pid": os.getpid(), "ready": self._ready, "nodes": nodes, "answers": self._answers,
        }  # fmt: skip
        temporary = self._directory / f".{STATE_FILE}.new"
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(self._directory / STATE_FILE)


def read_state(directory: Path) -> dict[str, Any]:
    """What the running `up` of a directory says of itself. Raises `NoCluster`."""
    try:
        content: dict[str, Any] = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = {}
    if not content or not is_held(directory):
        raise NoCluster(f"no cluster runs on {directory}: coterie up --data {directory}")
    return content


def request(directory: Path, verb: str, node: str = "-") -> str:
    """Ask the running `up` of a directory and wait for its answer, in words.

    Raises `NoCluster`, `Refused`."""
    state = read_state(directory)
    name = secrets.token_hex(8)
    try:
        control = os.open(directory / CONTROL_FILE, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        raise NoCluster(f"no cluster runs on {directory} (any more)") from None
    try:
        line = f"{name} {verb} {node}\n".encode()
        if len(line) > LINE_BYTES:
            raise Refused(f"no node {node!r}")
        os.write(control, line)
    finally:
        os.close(control)
    deadline = time.monotonic() + ANSWER_WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(NoCluster):
            answer = read_state(directory)["answers"].get(name)
            if answer is not None and verb != "down":
                if answer[0]:
                    return str(answer[1])
                raise Refused(answer[1])
        if not is_held(directory):
            if verb == "down":
                return "all nodes have ended; the data stay"
            raise NoCluster(f"the cluster on {directory} has ended")
        time.sleep(0.02)
    raise Refused(f"process {state['pid']} (coterie up) does not answer; it may be stopped: "
                  f"kill -CONT {state['pid']}")  # fmt: skip
