# SPDX-License-Identifier: Apache-2.0
"""The physical limits: the bare PUT of the same bytes, and reading the frozen view to nowhere."""

from __future__ import annotations

from collections.abc import Iterator

from compute_agent.disks.nbd import STATE_ZERO, NbdClient
from tools.bench import client
from tools.bench.figures import Sample
from tools.bench.measure import Helpers
from tools.bench.stage import Stage
from tools.bench.ways.pull_job import PullJob

_PIECE_BYTES = 1 << 20


def put(stage: Stage, *, chunked: bool = False) -> Sample:
    """Put the bytes of the first snapshot into a fresh image: one thread, nothing hashed."""
    image_id = client.create_record(stage.cloud)
    with stage.meter(Helpers()) as meter:
        client.put(stage.cloud, image_id, stage.put_source, chunked=chunked)
    client.delete(stage.cloud, image_id)
    return meter.sample(image_bytes=stage.put_source.stat().st_size)


def read(stage: Stage) -> Sample:
    """Read the export of a backup job to nowhere, with the agent's own NBD client."""
    count_bytes = 0
    with PullJob(stage) as job:
        job.begin()
        with stage.meter(Helpers()) as meter, NbdClient(job.socket, job.export) as source:
            for piece in source.read_in_order(_pieces(source)):
                count_bytes += len(piece)
    return meter.sample(image_bytes=count_bytes)


def _pieces(source: NbdClient) -> Iterator[tuple[int, int]]:
    """Yield the data as pieces of 1 MiB at the most: (offset, length) in bytes."""
    for extent in list(source.extents()):
        if extent.flags & STATE_ZERO:
            continue
        end = extent.offset + extent.length
        for offset in range(extent.offset, end, _PIECE_BYTES):
            yield offset, min(_PIECE_BYTES, end - offset)
