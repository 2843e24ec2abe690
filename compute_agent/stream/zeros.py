# SPDX-License-Identifier: Apache-2.0
"""Clusters that are in use and hold only zeros: found, and left out, when that is worth it.

A guest that wipes its free space or deleted files writes such clusters. The
length of an image is promised before its first byte, so finding them takes a
read of the whole disk beforehand. Reading costs about a quarter of what sending
does (Glance hashes twice and stores), so a sample decides: nothing is read
twice unless at least half of the disk's data look like zeros. Called by
`layouts`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

from compute_agent.stream.extents import (
    CLUSTER_BYTES,
    ClusterMap,
    Runs,
    Source,
    difference,
    union,
)
from compute_agent.stream.progress import Meter, OnProgress, ignore

LOG = logging.getLogger(__name__)

_SAMPLES = 64
#: Below 64 MiB of data nothing is worth a second look.
_WORTH_CLUSTERS = 1024
_ZERO_CLUSTER = bytes(CLUSTER_BYTES)


def without_zeros(
    source: Source,
    cluster_map: ClusterMap,
    *,
    is_increment: bool,
    on_progress: OnProgress = ignore,
) -> ClusterMap:
    """Return the map without data clusters that hold only zeros, or as it is if there are few.

    In an increment they are marked as zeros, for they hide what lies below. Where all
    is read for it, `on_progress` is told how far that is.
    Raises what reading `source` raises.
    """
    if not _looks_zero(source, cluster_map):
        return cluster_map
    LOG.info("Half of what the disk has in use looks like zeros; looking for all of them")
    zeros = Runs((number, 1) for number in _zero_clusters(source, cluster_map, on_progress))
    LOG.info("%d of %d MiB in use are zeros", _mib(zeros), _mib(cluster_map.data))
    return ClusterMap(
        cluster_map.size_bytes,
        difference(cluster_map.data, zeros),
        union(cluster_map.zero, zeros) if is_increment else cluster_map.zero,
    )


def _looks_zero(source: Source, cluster_map: ClusterMap) -> bool:
    """Look at a few clusters; True if half of them are zeros."""
    if cluster_map.data.clusters < _WORTH_CLUSTERS:
        return False
    samples = ClusterMap(cluster_map.size_bytes, _sample(cluster_map.data))
    found = sum(1 for _ in _zero_clusters(source, samples))
    return found * 2 >= samples.data.clusters


def _sample(data: Runs) -> Runs:
    """Return single clusters from all over the data, in order."""
    # No secret: only that a guest's own pattern must not meet ours.
    wanted = sorted(random.sample(range(data.clusters), _SAMPLES))
    found, passed = Runs(), 0
    ordinals = iter(wanted)
    ordinal = next(ordinals, None)
    for first, count in data:
        while ordinal is not None and ordinal < passed + count:
            number = first + ordinal - passed
            found.add(number, number + 1)
            ordinal = next(ordinals, None)
        passed += count
    return found


def _zero_clusters(
    source: Source, cluster_map: ClusterMap, on_progress: OnProgress = ignore
) -> Iterator[int]:
    """Read the map's data and yield the numbers of the clusters that are zeros, in order."""
    numbers = (
        number for first, count in cluster_map.data for number in range(first, first + count)
    )
    meter = Meter(cluster_map.data_bytes, on_progress)
    for buffer in source.read_in_order(cluster_map.pieces()):
        for at in range(0, len(buffer), CLUSTER_BYTES):
            number = next(numbers)
            length = min(CLUSTER_BYTES, len(buffer) - at)
            if buffer.startswith(_ZERO_CLUSTER[:length], at):
                yield number
        meter.add(len(buffer))


def _mib(runs: Runs) -> int:
    return runs.clusters * CLUSTER_BYTES >> 20
