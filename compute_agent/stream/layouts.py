# SPDX-License-Identifier: Apache-2.0
"""Which layout an image gets, by what was asked for."""

from __future__ import annotations

from compute_agent.stream.compressed import CompressedLayout
from compute_agent.stream.extents import Source
from compute_agent.stream.pump import Layout
from compute_agent.stream.qcow2 import Qcow2Layout
from compute_agent.stream.raw import RawLayout


def make_layout(
    source: Source, *, disk_format: str, compression: str | None = None, changes: str | None = None
) -> Layout:
    """Lay out a disk as an image of `disk_format` ("qcow2" or "raw").

    With `changes`, a dirty bitmap's meta context, only what it marks: an
    increment, which is always qcow2. With a `compression` (of qcow2) the whole
    disk is read for it, and once more when it is streamed.
    """
    if compression is not None and disk_format == "qcow2":
        return CompressedLayout.compressed(source, compression, changes)
    if changes is not None:
        return Qcow2Layout.increment_of(source, changes)
    return RawLayout.of(source) if disk_format == "raw" else Qcow2Layout.of(source)
