# SPDX-License-Identifier: Apache-2.0
"""A job's progress is one whole, whatever passes it takes."""

from __future__ import annotations

import itertools

from common.reports import JobProgress
from compute_agent.jobs import Job
from compute_agent.stream.compressed import CompressedLayout
from compute_agent.stream.extents import CLUSTER_BYTES
from compute_agent.stream.progress import Meter
from compute_agent.teller import Teller
from tests.unit.compute_agent.conftest import RecordedReports
from tests.unit.compute_agent.stream.memory import MemorySource
from tests.unit.compute_agent.stream.test_compressed import noise


def metered(bytes_total: int, teller: Teller, steps: int = 4) -> None:
    meter = Meter(bytes_total, teller.tell, interval_s=0.0)
    for _ in range(steps):
        meter.add(bytes_total // steps)


def shares(told: list[JobProgress]) -> list[float]:
    return [one.bytes_done / one.bytes_total for one in told]


def first_pass(content: bytes, teller: Teller) -> CompressedLayout:
    return CompressedLayout.compressed(
        MemorySource(content), "zlib", on_progress=teller.tell_first_pass
    )


def test_progress_moves_through_the_first_pass_and_on_without_going_back(
    job: Job, reports: RecordedReports
) -> None:
    teller = Teller(job, log_interval_s=60)
    disk = noise(8 * CLUSTER_BYTES)
    layout = first_pass(disk, teller)
    assert shares(reports.told)[-1] == 0.5, "it is read, and not sent yet"
    teller.expect(layout.length_bytes)
    metered(layout.length_bytes // 4 * 4, teller)
    told = shares(reports.told)
    assert told == sorted(told)
    assert told[-1] > 0.99


def test_several_images_are_told_as_one(job: Job, reports: RecordedReports) -> None:
    teller = Teller(job, log_interval_s=60)
    teller.expect(4000)
    for size in (1000, 3000):
        metered(size, teller)
        teller.went_through(size)
    done = [one.bytes_done for one in reports.told]
    assert done == sorted(done)
    assert (done[3], done[-1]) == (1000, 4000)
    assert all(a < b for a, b in itertools.pairwise(done))


def test_an_image_that_is_sent_once_more_is_told_from_its_beginning(
    job: Job, reports: RecordedReports
) -> None:
    teller = Teller(job, log_interval_s=60)
    teller.expect(4000)
    for size in (1000, 3000):
        metered(size, teller)
        teller.went_through(size)
    teller.goes_again(3000)
    metered(3000, teller)
    assert [one.bytes_done for one in reports.told][-4:] == [1750, 2500, 3250, 4000]
