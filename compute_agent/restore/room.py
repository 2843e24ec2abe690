# SPDX-License-Identifier: Apache-2.0
"""Room on the host's file systems for what is fetched and built, promised to one after the other.

Called by `restorer`, `fetch` and `build`: a restore must fail before the guests do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.flatten import NoRoom
from common.glance import Image

LOG = logging.getLogger(__name__)

#: What `st_blocks` counts in, whatever the file system.
_BLOCK_BYTES = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Promise:
    """What files that did not exist may take together."""

    device: int
    files: Sequence[Path]
    needed_bytes: int

    def outstanding_bytes(self) -> int:
        """Return what they have not taken of that yet."""
        return max(0, self.needed_bytes - sum(map(_taken_bytes, self.files)))


class Rooms:
    """The room that restores at work were promised and have not used yet. Thread-safe.

    One for all jobs of a host: each would see the same free space otherwise.
    """

    def __init__(self, min_free_bytes: int) -> None:
        self._min_free_bytes = min_free_bytes
        self._lock = threading.Lock()
        self._promises: list[_Promise] = []

    @contextlib.contextmanager
    def promised(
        self, directory: Path, files: Sequence[Path], needed_bytes: int, image: Image
    ) -> Iterator[None]:
        """Keep so much of a directory's file system for `files`; raise NoRoom if there is less."""
        device = directory.stat().st_dev
        promise = _Promise(device=device, files=files, needed_bytes=needed_bytes)
        with self._lock:
            others = [one.outstanding_bytes() for one in self._promises if one.device == device]
            self.require(directory, needed_bytes, image, others_bytes=sum(others))
            self._promises.append(promise)
        try:
            yield
        finally:
            with self._lock:
                self._promises.remove(promise)

    def require(
        self, directory: Path, needed_bytes: int, image: Image, *, others_bytes: int = 0
    ) -> None:
        """Raise NoRoom unless so much can be written there and the reserve still be free."""
        free_bytes = shutil.disk_usage(directory).free
        if free_bytes - others_bytes - needed_bytes < self._min_free_bytes:
            LOG.error(
                "%s has %d MiB free, %d of them for other images on their way; image %s needs %d, "
                "and [restore] min_free keeps %d",
                directory,
                free_bytes >> 20,
                others_bytes >> 20,
                image.id,
                needed_bytes >> 20,
                self._min_free_bytes >> 20,
            )
            raise NoRoom(
                f"the host has too little free space for image {image.id}; try again later"
            )


def _taken_bytes(file: Path) -> int:
    try:
        return file.stat().st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0
