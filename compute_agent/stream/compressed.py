# SPDX-License-Identifier: Apache-2.0
"""A compressed qcow2 without a temporary copy: two passes over the frozen export.

The tables of a qcow2 stand before its data and hold each cluster's place, which
only compressing it tells. So a first pass (when the layout is made) compresses
every cluster and keeps its length, four bytes each; the second compresses again
and sends. Clusters that hold only zeros are found on the way and not sent;
those that do not shrink are sent as they are. Format: QEMU's
docs/interop/qcow2.txt, "compressed clusters".
"""

from __future__ import annotations

import collections
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import zstandard

from common.errors import JobFailed
from compute_agent.stream.extents import (
    CLUSTER_BYTES,
    ClusterMap,
    Runs,
    Source,
    difference,
    full_map,
    increment_map,
    union,
)
from compute_agent.stream.progress import Meter, OnProgress, ignore
from compute_agent.stream.qcow2 import COPIED, Qcow2Layout, round_up

#: QEMU inflates with a window of 4 KiB, and without zlib's header.
_WINDOW_BITS = -12
#: More than twice as fast as the default for 3 % more bytes (and it is paid twice).
_ZLIB_LEVEL = 1
_ZSTD_LEVEL = 3
_WORKERS = 2
#: Reads that are compressed or wait for it; each is 1 MiB.
_AHEAD = 8

_COMPRESSED = 1 << 62
#: An entry holds the place in its lower bits, the number of sectors above (64 KiB clusters).
_SECTORS_SHIFT = 54
_SECTOR_BITS = 9
_FEATURE_COMPRESSION_TYPE = 1 << 3
_TYPE_ZSTD = 1
_TYPE_FIELD_BYTES = 8

_ZERO_CLUSTER = bytes(CLUSTER_BYTES)
#: Lengths that mean no compressed length.
_IS_ZERO, _IS_PLAIN = 0, CLUSTER_BYTES

Compress = Callable[[bytes | memoryview], bytes]


class DiskChanged(JobFailed):
    """The second pass compressed to other lengths: the frozen view did not stand still."""

    code = "export_changed"


def _deflate(data: bytes | memoryview) -> bytes:
    deflater = zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, _WINDOW_BITS, 9)
    return deflater.compress(data) + deflater.flush()


def _zstd(data: bytes | memoryview) -> bytes:
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data)


COMPRESSIONS: dict[str, Compress] = {"zlib": _deflate, "zstd": _zstd}


class CompressedLayout(Qcow2Layout):
    """Lays out a cluster map, compressed; making it is the first pass over `source`.

    `compression` is "zlib", which everything reads, or "zstd" (QEMU 5.1 and
    later). Raises whatever reading `source` raises.
    """

    def __init__(
        self,
        cluster_map: ClusterMap,
        source: Source,
        *,
        compression: str,
        is_increment: bool = False,
        on_progress: OnProgress = ignore,
    ) -> None:
        self._compression = compression
        self._read_map = cluster_map
        self._lengths = array("I")
        meter = Meter(cluster_map.data.clusters * CLUSTER_BYTES, on_progress)
        for chunks in self._compressed(source):
            self._lengths.extend(len(chunk) for chunk in chunks)
            meter.add(len(chunks) * CLUSTER_BYTES)
        zeros = Runs(self._clusters_where(lambda length: length == _IS_ZERO))
        self._total_bytes = _end_of(self._placed())
        super().__init__(
            ClusterMap(
                cluster_map.size_bytes,
                difference(cluster_map.data, zeros),
                # In a whole image a cluster without an entry reads as zeros anyway.
                union(cluster_map.zero, zeros) if is_increment else Runs(),
            )
        )
        self.data_bytes = cluster_map.data_bytes

    @classmethod
    def compressed(
        cls,
        source: Source,
        compression: str,
        changes: str | None = None,
        on_progress: OnProgress = ignore,
    ) -> CompressedLayout:
        """Lay out a whole disk or, with `changes` (a bitmap's context), what changed of it.

        `on_progress` is told how far the first pass is.
        """
        return cls(
            full_map(source) if changes is None else increment_map(source, changes),
            source,
            compression=compression,
            is_increment=changes is not None,
            on_progress=on_progress,
        )

    def _stream_data(self, source: Source) -> Iterator[bytes | bytearray]:
        at, lengths = 0, iter(self._lengths)
        for chunks in self._compressed(source):
            ready = []
            for chunk, length in zip(chunks, lengths, strict=False):
                if len(chunk) != length:
                    raise DiskChanged("the disk's frozen view changed while it was read")
                if length == _IS_PLAIN:
                    gap = -at % CLUSTER_BYTES
                    ready.append(bytes(gap))
                    at += gap
                ready.append(bytes(chunk))
                at += length
            yield b"".join(ready)
        yield bytes(-at % CLUSTER_BYTES)

    def _data_clusters(self) -> int:
        return round_up(self._total_bytes, CLUSTER_BYTES) // CLUSTER_BYTES

    def _data_entries(self) -> Iterator[int]:
        start = self._data_at()
        for at, length in self._placed():
            place = start + at
            if length == _IS_PLAIN:
                yield place | COPIED
            else:
                sectors = ((place + length - 1) >> _SECTOR_BITS) - (place >> _SECTOR_BITS)
                yield _COMPRESSED | sectors << _SECTORS_SHIFT | place

    def _data_refcounts(self) -> Iterator[int]:
        counts = array("H", bytes(2 * self._data_clusters()))
        for at, length in self._placed():
            for cluster in range(at // CLUSTER_BYTES, (at + length - 1) // CLUSTER_BYTES + 1):
                counts[cluster] += 1
        return iter(counts)

    def _features(self) -> tuple[int, bytes]:
        if self._compression == "zlib":
            return 0, b""
        return _FEATURE_COMPRESSION_TYPE, bytes([_TYPE_ZSTD]).ljust(_TYPE_FIELD_BYTES, b"\0")

    def _placed(self) -> Iterator[tuple[int, int]]:
        """Yield (place from the data's begin on, length) of each cluster that is sent."""
        at = 0
        for length in self._lengths:
            if length == _IS_ZERO:
                continue
            if length == _IS_PLAIN:
                at = round_up(at, CLUSTER_BYTES)
            yield at, length
            at += length

    def _clusters_where(self, holds: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
        """Yield the clusters whose length fits, as (number, 1), in order."""
        numbers = (
            number for first, count in self._read_map.data for number in range(first, first + count)
        )
        return (
            (number, 1)
            for number, length in zip(numbers, self._lengths, strict=True)
            if holds(length)
        )

    def _compressed(self, source: Source) -> Iterator[list[bytes]]:
        """Read the map's data and yield its clusters compressed, in order, a read at a time."""
        compress = COMPRESSIONS[self._compression]

        def work(buffer: bytearray) -> list[bytes]:
            return [_shrink(cluster, compress) for cluster in _split(buffer)]

        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="compress") as pool:
            waiting: collections.deque[Future[list[bytes]]] = collections.deque()
            for buffer in source.read_in_order(self._read_map.pieces()):
                waiting.append(pool.submit(work, buffer))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _split(buffer: bytearray) -> Iterable[bytes]:
    for at in range(0, len(buffer), CLUSTER_BYTES):
        # The disk may end inside a cluster; a guest never sees what lies beyond.
        yield bytes(buffer[at : at + CLUSTER_BYTES]).ljust(CLUSTER_BYTES, b"\0")


def _shrink(cluster: bytes, compress: Compress) -> bytes:
    """Return what is sent of a cluster: nothing, its compressed form, or itself."""
    if cluster == _ZERO_CLUSTER:
        return b""
    compressed = compress(cluster)
    return compressed if len(compressed) < CLUSTER_BYTES else cluster


def _end_of(placed: Iterator[tuple[int, int]]) -> int:
    at, length = next(iter(collections.deque(placed, maxlen=1)), (0, 0))
    return at + length
