# SPDX-License-Identifier: Apache-2.0
"""From an export's block map to runs of clusters: what to read, what reads as zeros.

Called by the formats (`qcow2`, `raw`). Runs are kept in 16 bytes each, so the
map of a large and shattered disk stays small: 100 GiB with every second cluster
in use are 13 MB.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator
from typing import Protocol

from compute_agent.disks.nbd import (
    ALLOCATION_CONTEXT,
    STATE_DIRTY,
    STATE_ZERO,
    Extent,
    NbdProtocolError,
)

CLUSTER_BITS = 16
CLUSTER_BYTES = 1 << CLUSTER_BITS

#: How much one read asks for: HTTP and NBD are both at their best from here on.
READ_BYTES = 1 << 20


class Source(Protocol):
    """What can be streamed: disks.nbd.NbdClient, or a twin of it in tests."""

    size_bytes: int

    def extents(self, context: str = ALLOCATION_CONTEXT) -> Iterator[Extent]:
        """Yield the whole disk's extents in a meta context, in order."""

    def read_in_order(self, pieces: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
        """Yield a buffer for each (offset, length), in order."""

    def abort(self) -> None:
        """Make whatever waits on it in another thread fail at once."""

    def close(self) -> None:
        """Let go of it."""


class Runs:
    """Sorted, disjoint, merged runs of clusters; iterates as (first, count)."""

    __slots__ = ("_counts", "_firsts", "clusters")

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts = array("Q")
        self._counts = array("Q")
        #: How many clusters there are in all runs.
        self.clusters = 0
        for first, count in runs:
            self.add(first, first + count)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._counts, strict=True)

    def __len__(self) -> int:
        return len(self._firsts)

    def add(self, first: int, end: int) -> None:
        """Append clusters `first` up to but not including `end`, no earlier than the last run."""
        if self._firsts:
            last_end = self._firsts[-1] + self._counts[-1]
            if first < self._firsts[-1]:
                raise ValueError("runs are added in order")
            if first <= last_end:
                grown = max(0, end - last_end)
                self._counts[-1] += grown
                self.clusters += grown
                return
        if end > first:
            self._firsts.append(first)
            self._counts.append(end - first)
            self.clusters += end - first


class ClusterMap:
    """What an image holds: `data` clusters are read, `zero` clusters only marked as zeros.

    The rest is not in the image at all: zeros in a full one, the backing file's
    in an increment. `size_bytes` is the disk's, and may end inside a cluster.
    """

    __slots__ = ("data", "size_bytes", "zero")

    def __init__(self, size_bytes: int, data: Runs, zero: Runs | None = None) -> None:
        self.size_bytes = size_bytes
        self.data = data
        self.zero = zero if zero is not None else Runs()

    @property
    def clusters(self) -> int:
        """How many clusters the disk has, the last one perhaps a part."""
        return -(-self.size_bytes // CLUSTER_BYTES)

    @property
    def data_bytes(self) -> int:
        """How many bytes of the disk are read."""
        beyond = 0
        for first, count in self.data:
            beyond = max(0, (first + count) * CLUSTER_BYTES - self.size_bytes)
        return self.data.clusters * CLUSTER_BYTES - beyond

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield the reads, (offset, length) in bytes, in order; the disk's end may be short."""
        for first, count in self.data:
            offset = first * CLUSTER_BYTES
            end = min(offset + count * CLUSTER_BYTES, self.size_bytes)
            while offset < end:
                length = min(READ_BYTES, end - offset)
                yield offset, length
                offset += length


def full_map(source: Source) -> ClusterMap:
    """Return the map of a whole disk: every cluster that does not surely read as zeros is data."""
    extents = _whole(source.extents(ALLOCATION_CONTEXT), source.size_bytes)
    data = _covering(extent for extent in extents if not extent.flags & STATE_ZERO)
    return ClusterMap(source.size_bytes, data)


def increment_map(source: Source, bitmap_context: str) -> ClusterMap:
    """Return the map of what has changed, by a `qemu:dirty-bitmap:NAME` context.

    A changed cluster that reads as zeros throughout becomes a zero cluster: it
    must hide what the backing file has there.
    """
    size = source.size_bytes
    used = full_map(source).data
    marked = _whole(source.extents(bitmap_context), size)
    changed = _covering(extent for extent in marked if extent.flags & STATE_DIRTY)
    return ClusterMap(size, intersection(changed, used), difference(changed, used))


def intersection(one: Runs, other: Runs) -> Runs:
    """Return the clusters that are in both."""
    found = Runs()
    others = iter(other)
    current = next(others, None)
    for first, count in one:
        end = first + count
        while current is not None and current[0] < end:
            begin, finish = max(first, current[0]), min(end, current[0] + current[1])
            if begin < finish:
                found.add(begin, finish)
            if current[0] + current[1] > end:
                break
            current = next(others, None)
    return found


def union(one: Runs, other: Runs) -> Runs:
    """Return the clusters that are in either."""
    found = Runs()
    for first, count in heapq.merge(one, other):
        found.add(first, first + count)
    return found


def difference(one: Runs, other: Runs) -> Runs:
    """Return the clusters of `one` that are not in `other`."""
    found = Runs()
    common = iter(intersection(one, other))
    hole = next(common, None)
    for first, count in one:
        end = first + count
        while hole is not None and hole[0] < end:
            found.add(first, hole[0])
            first = hole[0] + hole[1]
            hole = next(common, None)
        if first < end:
            found.add(first, end)
    return found


def _covering(extents: Iterable[Extent]) -> Runs:
    """Return the clusters that any of the extents touches."""
    runs = Runs()
    for extent in extents:
        end = extent.offset + extent.length
        runs.add(extent.offset >> CLUSTER_BITS, -(-end // CLUSTER_BYTES))
    return runs


def _whole(extents: Iterable[Extent], size_bytes: int) -> Iterator[Extent]:
    """Pass extents on; raise NbdProtocolError unless they cover the disk without gap or overlap."""
    at = 0
    for extent in extents:
        if extent.offset != at or extent.length <= 0:
            raise NbdProtocolError("the disk's block map has gaps")
        at += extent.length
        yield extent
    if at != size_bytes:
        raise NbdProtocolError("the disk's block map is not that of the whole disk")
