# SPDX-License-Identifier: Apache-2.0
"""A raw image: every byte of the disk, holes sent as zeros without being read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from compute_agent.stream.extents import READ_BYTES, ClusterMap, Source, full_map

_ZEROS = bytes(READ_BYTES)


class RawLayout:
    """Lays out a disk as itself. `length_bytes` is the image's exact length."""

    disk_format = "raw"

    def __init__(self, cluster_map: ClusterMap) -> None:
        self._map = cluster_map
        self.length_bytes = cluster_map.size_bytes
        self.virtual_bytes = cluster_map.size_bytes
        self.data_bytes = cluster_map.data_bytes

    @classmethod
    def of(cls, source: Source) -> RawLayout:
        """Lay out what `source` holds by its block map."""
        return cls(full_map(source))

    def stream(self, source: Source) -> Iterator[bytes | bytearray | memoryview]:
        """Yield the image from its first byte to its last, reading `source` once, in order."""
        asked: deque[int] = deque()

        def pieces() -> Iterator[tuple[int, int]]:
            for offset, length in self._map.pieces():
                asked.append(offset)
                yield offset, length

        at = 0
        for buffer in source.read_in_order(pieces()):
            offset = asked.popleft()
            yield from _zeros(offset - at)
            yield buffer
            at = offset + len(buffer)
        yield from _zeros(self.length_bytes - at)


def _zeros(count: int) -> Iterator[memoryview]:
    view = memoryview(_ZEROS)
    while count > 0:
        yield view[: min(count, READ_BYTES)]
        count -= READ_BYTES
