# SPDX-License-Identifier: Apache-2.0
"""A guest that cannot be given back now is given back later, and runs on as soon as it can."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from common.errors import (
    CaptureFailed,
    InstanceBusy,
    JobInterrupted,
)
from common.reports import CaptureFigures, DiskImage
from compute_agent import release
from compute_agent.guest.errors import HypervisorUnavailable
from compute_agent.jobs import Job
from compute_agent.journal import Entry, Journal, JournalUnavailable
from compute_agent.run import begin, facts_of
from compute_agent.snapshot import Pipeline
from tests.unit.compute_agent.conftest import (
    NewRequest,
    RecordedReports,
    journalled_again,
    wait_for,
)
from tests.unit.compute_agent.stage import Stage

FIGURES = CaptureFigures(method="backup", consistency="crash", captured_at=1.0)


def test_a_guest_that_cannot_be_given_back_costs_no_image_and_is_given_back_before_the_next_job(
    pipeline: Pipeline,
    stage: Stage,
    job: Job,
    journal: Journal,
    new_request: NewRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(release, "_PATIENCE_S", 0.0)
    stage.fails["end"] = InstanceBusy("libvirt holds the domain")
    pipeline.run(job)
    assert stage.was_let_run_on, "what could be ended may have made room"
    assert "discard ours" not in stage.done, "the image is made, verified and published"
    job.finish(None)
    assert [entry.job_id for entry in journal.unreleased()] == [job.entry.job_id]

    stage.fails.clear()
    stage.done.clear()
    stage.uuid = job.request.instance.uuid
    request = new_request(instance_uuid=stage.uuid)
    journal.accept(request, {})
    entry = journal.find(request.job_id)
    assert entry is not None
    pipeline.run(Job(entry, "h", RecordedReports(journal)))
    assert stage.done.index("end") < stage.done.index("prepare")
    assert journal.unreleased() == []


@pytest.mark.parametrize("fails_in", [None, "stream"])
def test_a_guest_that_stands_for_want_of_space_is_tried_again_though_its_capture_has_ended(
    pipeline: Pipeline,
    stage: Stage,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    fails_in: str | None,
) -> None:
    monkeypatch.setattr(release, "_PATIENCE_S", 0.0)
    stage.fails["run on"] = HypervisorUnavailable("libvirt is away")
    if fails_in:
        stage.fails[fails_in] = CaptureFailed("no room")
        with pytest.raises(CaptureFailed):
            pipeline.run(job)
    else:
        pipeline.run(job)
    job.finish(None)
    assert [entry.job_id for entry in journal.unreleased()] == [job.entry.job_id]


def test_what_cannot_be_put_right_at_the_start_is_marked_and_the_image_goes(
    pipeline: Pipeline, stage: Stage, job: Job, journal: Journal
) -> None:
    run = begin(pipeline._tools, job, pipeline._tools.hypervisor.guest(""))
    journal.begin_step(job.entry.job_id, "stream", facts_of(run))
    stage.fails["end"] = InstanceBusy("libvirt holds the domain")
    again = journalled_again(job, journal)
    assert not pipeline.recover(again)
    again.finish(JobInterrupted("the agent ended"))
    assert stage.done[-1] == "discard ours"
    assert [entry.job_id for entry in journal.unreleased()] == [job.entry.job_id]


def test_a_guest_that_could_not_be_resumed_at_the_start_is_resumed_later_and_only_once(
    pipeline: Pipeline, stage: Stage, job: Job, journal: Journal
) -> None:
    """Sentinel and agent had died inside the pause, and libvirt was away at the next start."""
    run = begin(pipeline._tools, job, pipeline._tools.hypervisor.guest(""))
    journal.begin_step(job.entry.job_id, "pause", facts_of(run))
    stage.fails["resume"] = HypervisorUnavailable("libvirt is away")
    again = journalled_again(job, journal)
    assert not pipeline.recover(again)
    again.finish(JobInterrupted("the agent ended"))

    stage.fails, stage.done = {"end": InstanceBusy("libvirt holds the domain")}, []
    stage.uuid = job.request.instance.uuid
    release.give_back_all(pipeline._tools)
    assert ("resume" in stage.done, len(journal.unreleased())) == (True, 1)

    stage.fails, stage.done = {}, []
    release.give_back_all(pipeline._tools)
    assert "resume" not in stage.done, "whoever paused it since then means it"
    assert ("end" in stage.done, journal.unreleased()) == (True, [])


def test_an_undo_that_fails_keeps_no_other_from_its_own_and_is_tried_again(
    pipeline: Pipeline,
    stage: Stage,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(release, "_RESUME_PATIENCE_S", 0.0)
    stage.fails = {"begin": CaptureFailed("no"), "resume": HypervisorUnavailable("it is away")}
    with pytest.raises(CaptureFailed):
        pipeline.run(job)
    job.finish(CaptureFailed("no"))
    assert stage.done[-2:] == ["end", "discard"]
    assert "disarm" not in stage.done, "the sentinel must still see to the guest"

    stage.fails, stage.done = {}, []
    stage.uuid = job.request.instance.uuid
    release.give_back_all(pipeline._tools)
    assert ("resume" in stage.done, journal.unreleased()) == (True, [])


def test_what_could_not_be_given_back_is_tried_again_without_another_job(
    pipeline: Pipeline,
    stage: Stage,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(release, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(release, "_LOOK_S", 0.01)
    stage.fails["end"] = InstanceBusy("libvirt holds the domain")
    pipeline.run(job)
    job.finish(None)
    stage.uuid = job.request.instance.uuid
    again = release.Again(pipeline._tools)
    again.start()
    try:
        wait_for(lambda: stage.done.count("end") > 2)
        stage.fails.clear()
        wait_for(lambda: journal.unreleased() == [])
    finally:
        again.stop(time.monotonic() + 5)


def test_a_published_snapshot_settles_its_checkpoint_when_it_is_given_back_later(
    pipeline: Pipeline, stage: Stage, job: Job, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[tuple[str, str]] = []

    def settle(_guest: Stage, job_id: str, images: Iterable[DiskImage], _sizes: object) -> None:
        settled.extend((job_id, image.image_id) for image in images)

    monkeypatch.setattr(stage, "settle", settle, raising=False)
    run = begin(pipeline._tools, job, pipeline._tools.hypervisor.guest(""))
    run.keeps_checkpoint = True
    journal.begin_step(job.entry.job_id, "release", facts_of(run))
    stage.fails["end"] = InstanceBusy("libvirt holds the domain")
    again = journalled_again(job, journal)
    # The figures of its capture were noted before.
    journal.note(job.entry.job_id, figures=FIGURES.to_wire())
    assert pipeline.recover(journalled_again(job, journal))
    again.result.images = list(job.result.images)
    again.finish(None)
    assert settled == []

    stage.fails.clear()
    stage.uuid = job.request.instance.uuid
    release.give_back_all(pipeline._tools)
    assert settled == [(job.entry.job_id, job.request.image_id)]


def test_a_journal_that_is_away_for_a_while_ends_no_trying(
    pipeline: Pipeline,
    stage: Stage,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(release, "_LOOK_S", 0.01)
    run = begin(pipeline._tools, job, pipeline._tools.hypervisor.guest(""))
    journal.begin_step(job.entry.job_id, "stream", facts_of(run))
    journal.mark_unreleased(job.entry.job_id)
    job.finish(CaptureFailed("no"))
    stage.uuid = job.request.instance.uuid
    away, looks = [True], []
    unreleased = journal.unreleased

    def look() -> list[Entry]:
        looks.append(1)
        if away:
            raise JournalUnavailable("the disk is full")
        return unreleased()

    monkeypatch.setattr(journal, "unreleased", look)
    again = release.Again(pipeline._tools)
    again.start()
    try:
        wait_for(lambda: len(looks) > 2)
        away.clear()
        wait_for(lambda: unreleased() == [])
    finally:
        again.stop(time.monotonic() + 5)
