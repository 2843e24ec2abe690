# SPDX-License-Identifier: Apache-2.0
"""Room for what a guest writes while its snapshot is read, and dirty pages out of the way.

Called by the captures before they begin: a snapshot must fail before the guest does.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from common.errors import CaptureFailed

LOG = logging.getLogger(__name__)

_PERCENT = 100
_FLUSH_ROUNDS = 2


def require_space(needs: Iterable[tuple[Path, int]], reserve_percent: int) -> None:
    """Raise CaptureFailed unless each file system has room for its share.

    `needs` are pairs of a directory and the size in bytes of a disk whose
    overwritten or new blocks will be kept there.
    """
    by_file_system: dict[int, tuple[Path, int]] = defaultdict(lambda: (Path(), 0))
    for directory, size_bytes in needs:
        device = directory.stat().st_dev
        by_file_system[device] = (directory, by_file_system[device][1] + size_bytes)
    for directory, size_bytes in by_file_system.values():
        free, needed = shutil.disk_usage(directory).free, size_bytes * reserve_percent // _PERCENT
        if free < needed:
            LOG.error(
                "%s has %d MiB free, and [capture] scratch_reserve_percent asks for %d",
                directory,
                free >> 20,
                needed >> 20,
            )
            raise CaptureFailed(
                "the host has too little free space to hold back what the instance overwrites "
                "during the snapshot; try again later"
            )


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
    """Return uid and gid of the user that QEMU writes this disk as."""
    status = os.stat(path)
    return status.st_uid, status.st_gid
