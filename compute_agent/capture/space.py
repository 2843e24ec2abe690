# SPDX-License-Identifier: Apache-2.0
"""Room for what a guest writes while its snapshot is read, and dirty pages out of the way.

Called by the captures before they begin: a snapshot must fail before the guest does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from common.errors import CaptureFailed

LOG = logging.getLogger(__name__)

_PERCENT = 100
_FLUSH_ROUNDS = 2
#: What `st_blocks` counts in, whatever the file system.
_BLOCK_BYTES = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """What one file may grow by, from the `had_bytes` that it had when that was promised."""

    file: Path
    device: int
    promised_bytes: int
    had_bytes: int

    def left_bytes(self) -> int:
        """Return what it has not yet taken of that; less than 0 if it took more."""
        grown_bytes = allocated_bytes([self.file]) - self.had_bytes
        return self.promised_bytes - max(0, grown_bytes)


class Reservations:
    """The room that open captures were promised and have not used yet. Thread-safe.

    One for all jobs of a host: each would see the same free space otherwise.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: dict[str, list[_Share]] = {}

    def take(self, holder: str, needs: Collection[tuple[Path, int]], reserve_percent: int) -> None:
        """Promise `holder` (a job) its room, or raise CaptureFailed.

        `needs` are pairs of a file that will grow, or be made, and the size in
        bytes of the disk whose blocks go there.
        """
        with self._lock:
            self._shares.pop(holder, None)
            require_space(
                [(file.parent, size_bytes) for file, size_bytes in needs],
                reserve_percent,
                self._promised(),
            )
            self._shares[holder] = _shares(needs, reserve_percent)

    def hold(self, holder: str, needs: Collection[tuple[Path, int]], reserve_percent: int) -> None:
        """Promise its room to one that is open already, however little there is left."""
        with self._lock:
            self._shares[holder] = _shares(needs, reserve_percent)

    def release(self, holder: str) -> None:
        """Give the room of `holder` to others; harmless if it has none."""
        with self._lock:
            self._shares.pop(holder, None)

    def others_bytes(self, holder: str, directory: Path) -> int:
        """Return how much of a directory's file system `holder` must leave to others.

        Nothing, while it keeps to its own promise. Beyond it, what the others were
        promised and have not used yet: the one that takes more than its share ends,
        not one that does not.
        """
        device = directory.stat().st_dev
        with self._lock:
            here = {
                name: [share for share in shares if share.device == device]
                for name, shares in self._shares.items()
            }
        # Looked at without the lock: a file system that hangs must hold up its own jobs alone.
        if sum(share.left_bytes() for share in here.pop(holder, ())) > 0:
            return 0
        return sum(max(0, share.left_bytes()) for shares in here.values() for share in shares)

    def _promised(self) -> Counter[int]:
        promised: Counter[int] = Counter()
        for shares in self._shares.values():
            for share in shares:
                promised[share.device] += max(0, share.left_bytes())
        return promised


def _shares(needs: Collection[tuple[Path, int]], reserve_percent: int) -> list[_Share]:
    return [
        _Share(
            file=file,
            device=file.parent.stat().st_dev,
            promised_bytes=size_bytes * reserve_percent // _PERCENT,
            had_bytes=allocated_bytes([file]),
        )
        for file, size_bytes in needs
    ]


def require_space(
    needs: Iterable[tuple[Path, int]],
    reserve_percent: int,
    promised: Mapping[int, int] | None = None,
) -> None:
    """Raise CaptureFailed unless each file system has room for its share.

    `needs` are pairs of a directory and the size in bytes of a disk whose
    overwritten or new blocks will be kept there; `promised` are bytes of each
    file system (`st_dev`) that are free and yet others'.
    """
    by_file_system: dict[int, tuple[Path, int]] = defaultdict(lambda: (Path(), 0))
    for directory, size_bytes in needs:
        device = directory.stat().st_dev
        by_file_system[device] = (directory, by_file_system[device][1] + size_bytes)
    for device, (directory, size_bytes) in by_file_system.items():
        others = promised.get(device, 0) if promised else 0
        free, needed = shutil.disk_usage(directory).free, size_bytes * reserve_percent // _PERCENT
        if free - others < needed:
            LOG.error(
                "%s has %d MiB free, %d of them for captures that are open, and [capture] "
                "scratch_reserve_percent asks for %d",
                directory,
                free >> 20,
                others >> 20,
                needed >> 20,
            )
            raise CaptureFailed(
                "the host has too little free space to hold back what the instance overwrites "
                "during the snapshot; try again later"
            )


def allocated_bytes(files: Iterable[Path]) -> int:
    """Return what the files take of their file systems; one that is not there takes nothing."""
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_blocks * _BLOCK_BYTES
    return total


def flush(paths: Collection[str]) -> None:
    """Write the images' dirty pages out, twice.

    A stop flushes the images inside the pause. The first round lets the guest
    dirty more meanwhile, the second leaves next to nothing.
    """
    for _ in range(_FLUSH_ROUNDS):
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def owner_of(path: str) -> tuple[int, int]:
    """Return uid and gid of a disk's owner: the user that QEMU writes it as, if it is a file."""
    status = os.stat(path)
    return status.st_uid, status.st_gid
