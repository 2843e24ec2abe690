# SPDX-License-Identifier: Apache-2.0
"""Block maps become runs of clusters that miss nothing and read nothing in vain."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_agent.disks.nbd import STATE_ZERO, Extent, NbdProtocolError
from compute_agent.stream.extents import (
    CLUSTER_BYTES,
    READ_BYTES,
    ClusterMap,
    Runs,
    difference,
    full_map,
    increment_map,
    intersection,
)
from tests.unit.compute_agent.stream.memory import DIRTY_CONTEXT, MemorySource

cluster_sets = st.frozensets(st.integers(0, 40))


def runs_of(clusters: Iterable[int]) -> Runs:
    return Runs((cluster, 1) for cluster in sorted(clusters))


def clusters_of(runs: Runs) -> set[int]:
    return {cluster for first, count in runs for cluster in range(first, first + count)}


class Mapped(MemorySource):
    """A disk whose block map is given, true or not."""

    def __init__(self, size_bytes: int, extents: list[Extent]) -> None:
        super().__init__(b"")
        self.size_bytes = size_bytes
        self._extents = extents

    def extents(self, context: str = "") -> Iterator[Extent]:
        return iter(self._extents)


@given(cluster_sets)
def test_runs_are_merged_and_hold_what_was_added(clusters: frozenset[int]) -> None:
    runs = runs_of(clusters)
    found = list(runs)
    assert clusters_of(runs) == clusters
    assert runs.clusters == len(clusters)
    ends = [(first, first + count) for first, count in found]
    assert all(end < following for (_, end), (following, _) in itertools.pairwise(ends))


@given(cluster_sets, cluster_sets)
def test_set_operations_agree_with_sets(one: frozenset[int], other: frozenset[int]) -> None:
    assert clusters_of(intersection(runs_of(one), runs_of(other))) == one & other
    assert clusters_of(difference(runs_of(one), runs_of(other))) == one - other


def test_runs_out_of_order_are_refused() -> None:
    runs = Runs([(5, 1)])
    with pytest.raises(ValueError, match="in order"):
        runs.add(3, 4)


def test_an_extent_inside_a_cluster_takes_the_whole_cluster() -> None:
    content = bytearray(3 * CLUSTER_BYTES)
    content[CLUSTER_BYTES + 700] = 1
    assert list(full_map(MemorySource(bytes(content))).data) == [(1, 1)]


def test_a_short_last_cluster_is_read_only_to_the_disks_end() -> None:
    source = MemorySource(b"x" * (CLUSTER_BYTES + 1000))
    cluster_map = full_map(source)
    assert cluster_map.data_bytes == source.size_bytes
    assert list(cluster_map.pieces()) == [(0, source.size_bytes)]


def test_reads_are_bounded_and_cover_a_long_run_once() -> None:
    size = 5 * READ_BYTES // 2
    pieces = list(ClusterMap(size, Runs([(0, size // CLUSTER_BYTES)])).pieces())
    assert pieces == [(0, READ_BYTES), (READ_BYTES, READ_BYTES), (2 * READ_BYTES, READ_BYTES // 2)]


def test_an_increment_reads_changed_data_and_marks_changed_zeros() -> None:
    content = bytearray(b"d" * CLUSTER_BYTES * 4)
    content[CLUSTER_BYTES : 2 * CLUSTER_BYTES] = bytes(CLUSTER_BYTES)
    source = MemorySource(bytes(content), dirty=[(0, 512), (CLUSTER_BYTES, CLUSTER_BYTES)])
    cluster_map = increment_map(source, DIRTY_CONTEXT)
    assert list(cluster_map.data) == [(0, 1)]
    assert list(cluster_map.zero) == [(1, 1)]


@pytest.mark.parametrize(
    "extents",
    [
        pytest.param([Extent(0, 512, 0)], id="too-short"),
        pytest.param([Extent(0, 512, 0), Extent(1024, 512, STATE_ZERO)], id="gap"),
        pytest.param([Extent(0, 2048, 0)], id="too-long"),
    ],
)
def test_a_block_map_that_is_not_the_whole_disks_is_refused(extents: list[Extent]) -> None:
    """Whatever the map leaves out would silently be zeros in the image."""
    with pytest.raises(NbdProtocolError):
        full_map(Mapped(1536, extents))
