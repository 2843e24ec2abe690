# SPDX-License-Identifier: Apache-2.0
"""A disk in memory that can be streamed like an NBD export."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import groupby

from compute_agent.disks.nbd import ALLOCATION_CONTEXT, STATE_HOLE, STATE_ZERO, Extent

GRAIN_BYTES = 512
DIRTY_CONTEXT = "qemu:dirty-bitmap:changes"


class MemorySource:
    """Serves `content`; its block map tells the truth in grains of 512 bytes.

    `dirty` are (offset, length) stretches for DIRTY_CONTEXT. `gate`, if given,
    is waited for before each read, until `abort`. With `allocated` the map
    calls everything data, zeros or not.
    """

    def __init__(
        self,
        content: bytes,
        *,
        dirty: Iterable[tuple[int, int]] = (),
        gate: threading.Event | None = None,
        allocated: bool = False,
    ) -> None:
        self.size_bytes = len(content)
        self.closed = False
        self.aborted = threading.Event()
        self.reads: list[tuple[int, int]] = []
        self._content = content
        self._dirty = tuple(dirty)
        self._gate = gate
        self._allocated = allocated

    def extents(self, context: str = ALLOCATION_CONTEXT) -> Iterator[Extent]:
        state = self._allocation if context == ALLOCATION_CONTEXT else self._is_dirty
        for flags, group in groupby(range(0, self.size_bytes, GRAIN_BYTES), key=state):
            offsets = list(group)
            end = min(offsets[-1] + GRAIN_BYTES, self.size_bytes)
            yield Extent(offsets[0], end - offsets[0], flags)

    def read_in_order(self, pieces: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
        for offset, length in pieces:
            while self._gate is not None and not self._gate.wait(0.01):
                if self.aborted.is_set():
                    raise ConnectionError("aborted")
            self.reads.append((offset, length))
            yield bytearray(self._content[offset : offset + length])

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.closed = True

    def _allocation(self, offset: int) -> int:
        if self._allocated:
            return 0
        return 0 if any(self._content[offset : offset + GRAIN_BYTES]) else STATE_HOLE | STATE_ZERO

    def _is_dirty(self, offset: int) -> int:
        return int(any(start <= offset < start + length for start, length in self._dirty))
