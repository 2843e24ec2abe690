# SPDX-License-Identifier: Apache-2.0
"""A daemon that is started, found again and stopped by its process id, never by name."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_LOOK_S = 0.05
_STOP_TIMEOUT_S = 30.0
_FIRST_PORT = 10_000
#: The ports that `free_port` has returned; their servers may not listen yet.
_given: set[int] = set()


class Process:
    """A process group whose leader is recorded in `directory/NAME.pid` with its start time.

    The start time tells our process from a stranger that got the same id later.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.log = directory / f"{name}.out"
        self._record = directory / f"{name}.pid"

    def start(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the command in a session of its own."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        self._record.write_text(json.dumps([process.pid, _start_time(process.pid)]))

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None if it does not run."""
        try:
            pid, started = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return None
        return pid if started is not None and _start_time(pid) == started else None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `ready`; raise RuntimeError with the end of the log if that does not come."""
        deadline = time.monotonic() + timeout_s
        while True:
            # Asked first: where it has ended, whatever answers is a stranger.
            if self.pid is None:
                raise RuntimeError(f"{self.name} ended at its start:\n{self.tail()}")
            if ready():
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} is not ready after {timeout_s} s:\n{self.tail()}")
            time.sleep(_LOOK_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the leader; harmless if it has ended."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, number)

    def kill(self) -> None:
        """Kill the whole process group at once, as a power cut would."""
        pid = self.pid
        if pid is not None:
            os.killpg(pid, signal.SIGKILL)
            self._wait_until_gone(pid)

    def stop(self) -> None:
        """End it in order, or by force if it does not obey in time; harmless if it has ended."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            if not self._wait_until_gone(pid):
                os.killpg(pid, signal.SIGKILL)
                self._wait_until_gone(pid)
        self._record.unlink(missing_ok=True)

    def tail(self, lines: int = 25) -> str:
        """Return the last lines that it printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _wait_until_gone(self, pid: int) -> bool:
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # it may be our own child
            if self.pid is None:
                return True
            time.sleep(_LOOK_S)
        return False


def side_by_side(*acts: Callable[[], object]) -> None:
    """Do several things at once; each is done whatever becomes of the others, then one's error
    is raised."""
    with ThreadPoolExecutor(len(acts)) as pool:
        doing = [pool.submit(act) for act in acts]
    for done in doing:
        done.result()


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on, another each time.

    It is none of those that the kernel gives to outgoing connections: one of these could
    get it before its server listens, or while that is away.
    """
    kernels_first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = _FIRST_PORT + secrets.randbelow(kernels_first - _FIRST_PORT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def kept_port(record: Path, process: Process) -> int:
    """Return the port that `record` keeps from start to start.

    Another is taken where a stranger got hold of it while `process` did not run.
    """
    if record.exists():
        port = int(record.read_text())
        if process.pid is not None or not listens(port):
            return port
    port = free_port()
    record.write_text(str(port))
    return port


def listens(port: int) -> bool:
    """Tell whether somebody listens on a TCP port of the loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _start_time(pid: int) -> int | None:
    """Return when a process began, in the kernel's ticks; None if it is gone or a zombie.

    A zombie that has threads left is none yet: what it listened on is still open.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    threads = int(fields[17])
    return None if fields[0] == "Z" and threads <= 1 else int(fields[19])
