# SPDX-License-Identifier: Apache-2.0
"""Counters read from outside: CPU, bytes and memory of processes, space of directories.

/proc/PID/io tells bytes twice: of read and write calls, page cache or not
(rchar, wchar; files and pipes, no sockets), and of what was fetched from or sent
to disks (read_bytes, write_bytes; asynchronous I/O, which QEMU and qemu-nbd use,
is only there). Of both, the larger counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_KIB_PER_MIB = 1024
_BLOCK_BYTES = 512
_LOOK_S = 0.1
#: Writing this to clear_refs makes VmHWM, the peak of resident memory, begin anew.
_RESET_PEAK = "5"
_COUNTERS = {
    "called_read_bytes": "rchar",
    "called_written_bytes": "wchar",
    "disk_read_bytes": "read_bytes",
    "disk_written_bytes": "write_bytes",
}
_HASH_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What something has used since its start, or between two looks."""

    cpu_s: float = 0.0
    #: By calls and by disks: see above.
    called_read_bytes: float = 0
    called_written_bytes: float = 0
    disk_read_bytes: float = 0
    disk_written_bytes: float = 0

    def __add__(self, other: Usage) -> Usage:
        return self._with(other, lambda mine, its: mine + its)

    def __sub__(self, other: Usage) -> Usage:
        return self._with(other, lambda mine, its: mine - its)

    def times(self, factor: float) -> Usage:
        """Return so many times the usage."""
        return self._with(self, lambda mine, _: mine * factor)

    @property
    def read_bytes(self) -> float:
        """What was read, from wherever."""
        return max(self.called_read_bytes, self.disk_read_bytes)

    @property
    def written_bytes(self) -> float:
        """What was written, to wherever."""
        return max(self.called_written_bytes, self.disk_written_bytes)

    def _with(self, other: Usage, operation: Callable[[float, float], float]) -> Usage:
        names = (field.name for field in dataclasses.fields(self))
        return Usage(
            **{name: operation(getattr(self, name), getattr(other, name)) for name in names}
        )


def of_tree(pid: int) -> Usage:
    """Return what a process and its children, living and reaped, have used.

    The kernel adds a reaped child's CPU time and bytes to its parent's.
    """
    own = Usage(cpu_s=_cpu_s(pid, with_reaped=True), **_bytes(pid))
    return sum((of_tree(child) for child in _children(pid)), own)


def of_qemu(pid: int) -> Usage:
    """Return what a guest's QEMU has used."""
    return Usage(cpu_s=_cpu_s(pid), **_bytes(pid))


def of_thread() -> Usage:
    """Return what the calling thread has used."""
    return Usage(cpu_s=time.thread_time(), **_bytes("thread-self"))


class Helpers:
    """Programs that the calling thread runs one after the other, and the thread itself."""

    def __init__(self) -> None:
        self._spent = Usage()
        self._rss_peak_mib = 0.0

    def run(self, *command: str, timeout_s: float = 600.0) -> None:
        """Run a program to its end; raise CalledProcessError unless it succeeds."""
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        killer = threading.Timer(timeout_s, process.kill)
        killer.start()
        # Left a zombie until its counters are read.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        killer.cancel()
        counted = _bytes(process.pid)
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self._spent += Usage(cpu_s=used.ru_utime + used.ru_stime, **counted)
        self._rss_peak_mib = max(self._rss_peak_mib, used.ru_maxrss / _KIB_PER_MIB)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)

    def begin(self) -> None:
        """Forget what was used until now."""
        self._spent, self._rss_peak_mib = Usage(), 0.0

    def usage(self) -> Usage:
        """Return what the programs and this thread have used."""
        return self._spent + of_thread()

    def rss_peak_mib(self) -> float | None:
        """Return the largest resident memory of any of the programs; None if none was run."""
        return self._rss_peak_mib or None


class Daemon:
    """A process that runs on, as a tool to be measured."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def begin(self) -> None:
        """Have its peak of resident memory begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text(_RESET_PEAK)

    def usage(self) -> Usage:
        """Return what it and its children have used."""
        return of_tree(self.pid)

    def rss_peak_mib(self) -> float:
        """Return the peak of its resident memory since `begin`."""
        return _memory_mib(self.pid, "VmHWM:")


Tool = Helpers | Daemon


class Space(threading.Thread):
    """Looks at what lies in directories while something runs, and keeps the peaks.

    `scratch` and `beyond` return the files that count as the one or the other.
    """

    def __init__(
        self, scratch: Callable[[], Iterable[Path]], beyond: Callable[[], Iterable[Path]]
    ) -> None:
        super().__init__(name="space", daemon=True)
        self._scratch = scratch
        self._beyond = beyond
        self._over = threading.Event()
        self.scratch_bytes = 0
        self.beyond_bytes = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Look, ten times a second."""
        while not self._over.wait(_LOOK_S):
            self.scratch_bytes = max(self.scratch_bytes, _occupied_bytes(self._scratch()))
            self.beyond_bytes = max(self.beyond_bytes, _occupied_bytes(self._beyond()))


def sha512_s_per_byte() -> float:
    """Return the CPU time that sha512 takes, by hashing what the agent hashes: 1 MiB pieces."""
    piece = os.urandom(_PIECE_BYTES)
    digest = hashlib.sha512()
    began = time.thread_time()
    for _ in range(_HASH_BYTES // _PIECE_BYTES):
        digest.update(piece)
    return (time.thread_time() - began) / _HASH_BYTES


def _cpu_s(pid: int, *, with_reaped: bool = False) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if with_reaped else 13])) / _TICKS_PER_S


def _bytes(who: int | str) -> dict[str, float]:
    lines = Path(f"/proc/{who}/io").read_text().splitlines()
    counters = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
    return {name: counters[counter] for name, counter in _COUNTERS.items()}


def _children(pid: int) -> Iterator[int]:
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            yield from map(int, listing.read_text().split())


def _memory_mib(pid: int, what: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(what)[1].split()[0]) / _KIB_PER_MIB


def resident_mib(pid: int) -> float:
    """Return a process's resident memory now."""
    return _memory_mib(pid, "VmRSS:")


def _occupied_bytes(paths: Iterable[Path]) -> int:
    used = 0
    for path in paths:
        with contextlib.suppress(OSError):  # gone again
            used += path.lstat().st_blocks * _BLOCK_BYTES
    return used


def files_below(directories: Sequence[Path]) -> Iterator[Path]:
    """Yield what lies in the directories, however deep; directories themselves do not count."""
    for directory in directories:
        with contextlib.suppress(OSError):
            yield from (path for path in directory.rglob("*") if not path.is_dir())
