# SPDX-License-Identifier: Apache-2.0
"""Which layout an image gets, by what was asked for."""

from __future__ import annotations

from compute_agent.stream.compressed import CompressedLayout
from compute_agent.stream.extents import Source, full_map, increment_map
from compute_agent.stream.progress import OnProgress, ignore
from compute_agent.stream.pump import Layout
from compute_agent.stream.qcow2 import Qcow2Layout
from compute_agent.stream.raw import RawLayout
from compute_agent.stream.zeros import without_zeros


def make_layout(
    source: Source,
    *,
    disk_format: str,
    compression: str | None = None,
    changes: str | None = None,
    on_progress: OnProgress = ignore,
) -> Layout:
    """Lay out a disk as an image of `disk_format` ("qcow2" or "raw").

    With `changes`, a dirty bitmap's meta context, only what it marks: an
    increment, which is always qcow2. With a `compression` (of qcow2) the whole
    disk is read for it, and once more when it is streamed; so is a disk of which
    at least half is zeros, to leave them out of a qcow2. `on_progress` is told how
    far that first pass is.
    """
    if changes is None and disk_format == "raw":
        return RawLayout.of(source)
    if compression is not None:
        return CompressedLayout.compressed(source, compression, changes, on_progress)
    is_increment = changes is not None
    cluster_map = full_map(source) if changes is None else increment_map(source, changes)
    return Qcow2Layout(
        without_zeros(source, cluster_map, is_increment=is_increment, on_progress=on_progress)
    )
