# SPDX-License-Identifier: Apache-2.0
"""A qcow2 image in one forward pass, its exact length known before the first byte.

The block map tells which clusters hold data, so the header, the refcounts and
the L1 and L2 tables can all be written first and the data after them, in the
disk's order:

    header | refcount table | refcount blocks | L1 table | L2 tables | data

Tables are made while they are sent, a cluster at a time, so memory stays flat
however large the disk is. Every cluster of the map is sent, also one whose data
turns out to be all zeros: the length is promised before the data is seen.
Format: QEMU's docs/interop/qcow2.txt, version 3.
"""

from __future__ import annotations

import heapq
import itertools
import operator
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator

from compute_agent.stream.extents import (
    CLUSTER_BITS,
    CLUSTER_BYTES,
    ClusterMap,
    Source,
)

_MAGIC = 0x514649FB
_VERSION = 3
_HEADER_BYTES = 104
_SECTOR_BYTES = 512
_REFCOUNT_ORDER = 4
_REFCOUNTS_PER_BLOCK = CLUSTER_BYTES // 2
_ENTRY_BYTES = 8
_TABLE_ENTRIES = CLUSTER_BYTES // _ENTRY_BYTES
#: In an entry: the cluster is used once, so it may be written in place.
COPIED = 1 << 63
#: An L2 entry without a cluster that hides the backing file.
_ZERO_ENTRY = struct.pack(">Q", 1)
_NO_EXTENSIONS = bytes(8)


class Qcow2Layout:
    """Lays out a cluster map; `length_bytes` is the image's exact length.

    The zero clusters of a map are written down: in an increment they hide what
    lies below. No backing file is named: Glance refuses images that name files.
    `virtual_bytes` is the size that a guest sees: the disk's, rounded up to
    whole sectors.
    """

    disk_format = "qcow2"

    def __init__(self, cluster_map: ClusterMap) -> None:
        self._data = cluster_map.data
        self._zero = cluster_map.zero
        self._map = cluster_map
        self.virtual_bytes = round_up(cluster_map.size_bytes, _SECTOR_BYTES)
        self.data_bytes = cluster_map.data_bytes
        self._l1_entries = max(1, -(-cluster_map.clusters // _TABLE_ENTRIES))
        self._l1_clusters = _clusters(self._l1_entries * _ENTRY_BYTES)
        self._l2_tables = sum(1 for _ in self._touched_tables())
        self._refcount_blocks, self._refcount_table_clusters = self._size_refcounts()
        self.length_bytes = self._length_clusters() * CLUSTER_BYTES

    def stream(self, source: Source) -> Iterator[bytes | bytearray]:
        """Yield the image from its first byte to its last, reading `source` once, in order."""
        yield self._header()
        yield from self._refcount_table()
        yield from self._refcounts()
        yield from self._l1_table()
        yield from self._all_l2_tables()
        yield from self._stream_data(source)

    # What a layout with other clusters (`compressed`) does otherwise.

    def _stream_data(self, source: Source) -> Iterator[bytes | bytearray]:
        last = 0
        for buffer in source.read_in_order(self._map.pieces()):
            last = len(buffer)
            yield buffer
        if last % CLUSTER_BYTES:
            # The disk ends inside a cluster; the image does not.
            yield bytes(-last % CLUSTER_BYTES)

    def _data_clusters(self) -> int:
        """Return how many clusters of the image the data takes."""
        return self._data.clusters

    def _data_entries(self) -> Iterator[int]:
        """Yield the L2 entry of each data cluster, in order."""
        return itertools.count(self._data_at() | COPIED, CLUSTER_BYTES)

    def _data_refcounts(self) -> Iterator[int]:
        """Yield how often each cluster that the data takes is used."""
        return itertools.repeat(1, self._data_clusters())

    def _features(self) -> tuple[int, bytes]:
        """Return the incompatible features and what the header holds beyond its usual length."""
        return 0, b""

    # Where things lie.

    def _length_clusters(self) -> int:
        return self._data_at() // CLUSTER_BYTES + self._data_clusters()

    def _size_refcounts(self) -> tuple[int, int]:
        """Return how many refcount blocks and table clusters it takes to count all, themselves too.

        Both grow with what they count, so grow them until they suffice.
        """
        rest = 1 + self._l1_clusters + self._l2_tables + self._data_clusters()
        blocks = table = 1
        while True:
            needed = -(-(rest + blocks + table) // _REFCOUNTS_PER_BLOCK)
            needed_table = _clusters(needed * _ENTRY_BYTES)
            if needed <= blocks and needed_table <= table:
                return blocks, table
            blocks, table = max(blocks, needed), max(table, needed_table)

    def _refcount_blocks_at(self) -> int:
        return (1 + self._refcount_table_clusters) * CLUSTER_BYTES

    def _l1_at(self) -> int:
        return self._refcount_blocks_at() + self._refcount_blocks * CLUSTER_BYTES

    def _l2_at(self) -> int:
        return self._l1_at() + self._l1_clusters * CLUSTER_BYTES

    def _data_at(self) -> int:
        return self._l2_at() + self._l2_tables * CLUSTER_BYTES

    # What stands there.

    def _header(self) -> bytes:
        features, beyond = self._features()
        header = struct.pack(
            ">IIQIIQIIQQIIQQQQII",
            _MAGIC,
            _VERSION,
            0,  # no backing file
            0,
            CLUSTER_BITS,
            self.virtual_bytes,
            0,  # encryption
            self._l1_entries,
            self._l1_at(),
            CLUSTER_BYTES,  # the refcount table's place
            self._refcount_table_clusters,
            0,  # internal snapshots: how many
            0,  # and where
            features,
            0,  # compatible features
            0,  # autoclear features
            _REFCOUNT_ORDER,
            _HEADER_BYTES + len(beyond),
        )
        return (header + beyond + _NO_EXTENSIONS).ljust(CLUSTER_BYTES, b"\0")

    def _refcount_table(self) -> Iterator[bytes]:
        start = self._refcount_blocks_at()
        return _table(range(start, self._l1_at(), CLUSTER_BYTES), self._refcount_table_clusters)

    def _refcounts(self) -> Iterator[bytes]:
        counts = itertools.chain(
            itertools.repeat(1, self._data_at() // CLUSTER_BYTES), self._data_refcounts()
        )
        for _ in range(self._refcount_blocks):
            block = array("H", itertools.islice(counts, _REFCOUNTS_PER_BLOCK))
            if sys.byteorder == "little":
                block.byteswap()
            yield block.tobytes().ljust(CLUSTER_BYTES, b"\0")

    def _l1_table(self) -> Iterator[bytes]:
        places = itertools.count(self._l2_at() | COPIED, CLUSTER_BYTES)
        entries = zip(self._touched_tables(), places, strict=False)
        entry = next(entries, None)
        for cluster in range(self._l1_clusters):
            table = bytearray(CLUSTER_BYTES)
            first, end = cluster * _TABLE_ENTRIES, (cluster + 1) * _TABLE_ENTRIES
            while entry is not None and entry[0] < end:
                struct.pack_into(">Q", table, (entry[0] - first) * _ENTRY_BYTES, entry[1])
                entry = next(entries, None)
            yield bytes(table)

    def _all_l2_tables(self) -> Iterator[bytes]:
        entries = self._data_entries()
        for _, parts in itertools.groupby(self._table_parts(), operator.itemgetter(0)):
            table = bytearray(CLUSTER_BYTES)
            for _, first, count, holds_data in parts:
                at = first * _ENTRY_BYTES
                if holds_data:
                    struct.pack_into(f">{count}Q", table, at, *itertools.islice(entries, count))
                else:
                    table[at : at + count * _ENTRY_BYTES] = _ZERO_ENTRY * count
            yield bytes(table)

    def _touched_tables(self) -> Iterator[int]:
        """Yield the numbers of the L2 tables that are needed, in order."""
        last = -1
        for table, *_ in self._table_parts():
            if table != last:
                yield table
            last = table

    def _table_parts(self) -> Iterator[tuple[int, int, int, bool]]:
        """Yield all runs cut at the tables' borders: (table, first entry, count, holds data)."""
        return heapq.merge(_cut(self._data, holds_data=True), _cut(self._zero, holds_data=False))


def _cut(
    runs: Iterable[tuple[int, int]], *, holds_data: bool
) -> Iterator[tuple[int, int, int, bool]]:
    for first, count in runs:
        end = first + count
        while first < end:
            table, entry = divmod(first, _TABLE_ENTRIES)
            part = min(end - first, _TABLE_ENTRIES - entry)
            yield table, entry, part, holds_data
            first += part


def _table(entries: range, clusters: int) -> Iterator[bytes]:
    """Yield a table of 8-byte entries, padded with zeros to whole clusters."""
    for cluster in range(clusters):
        part = entries[cluster * _TABLE_ENTRIES : (cluster + 1) * _TABLE_ENTRIES]
        yield struct.pack(f">{len(part)}Q", *part).ljust(CLUSTER_BYTES, b"\0")


def _clusters(count_bytes: int) -> int:
    return -(-count_bytes // CLUSTER_BYTES)


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit
