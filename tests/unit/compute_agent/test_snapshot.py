# SPDX-License-Identifier: Apache-2.0
"""The order of the steps, and of their undoing: the guest runs on before anything else."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from common.errors import (
    CaptureFailed,
    InstanceBusy,
    InstanceNotFound,
    JobCancelled,
    JobInterrupted,
    VerifyFailed,
)
from common.messages import SnapshotOptions
from common.states import PowerState
from compute_agent.guest.domain import DiskLatency
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.publication import Publication
from compute_agent.run import begin, facts_of
from compute_agent.snapshot import JOURNALLED, STEPS, Pipeline
from tests.unit.compute_agent.conftest import (
    NewRequest,
    RecordedReports,
    journalled_again,
    wait_for,
)
from tests.unit.compute_agent.stage import SETTINGS, Stage, tools_of

CEILING_BYTES_S = 200 * 10**6


def latency_of(writes: int) -> tuple[DiskLatency, DiskLatency]:
    """The first write took a millisecond, each one after it a hundred; nothing was read."""
    total_ns = 1_000_000 + (writes - 1) * 100_000_000
    return (
        DiskLatency(operations=0, total_ns=0),
        DiskLatency(operations=writes, total_ns=total_ns),
    )


def test_nothing_lies_between_the_stop_the_instant_and_the_resume(
    pipeline: Pipeline, stage: Stage, job: Job
) -> None:
    pipeline.run(job)
    expected = "find require_queued prepare arm suspend begin resume disarm"
    expected += " describe stream verify publish end"
    assert stage.done == expected.split()


def test_a_capture_that_fails_lets_the_guest_run_on_first(
    pipeline: Pipeline, stage: Stage, job: Job
) -> None:
    stage.fails["begin"] = CaptureFailed("QEMU says no")
    with pytest.raises(CaptureFailed):
        pipeline.run(job)
    after = stage.done[stage.done.index("begin") + 1 :]
    assert after == ["resume", "disarm", "end", "discard"]


def test_a_guest_is_not_stopped_to_wait_for_another_operation(
    pipeline: Pipeline, stage: Stage, job: Job
) -> None:
    """libvirt begins nothing while a migration or a save is at work, and waits half a minute."""
    stage.idle = False
    with pytest.raises(InstanceBusy, match="migration"):
        pipeline.run(job)
    assert "suspend" not in stage.done


def test_a_required_freeze_fails_the_snapshot_of_a_paused_guest(
    stage: Stage, journal: Journal, job: Job, tmp_path: Path
) -> None:
    stage.state = PowerState.PAUSED
    settings = dataclasses.replace(SETTINGS, freeze="required")
    with pytest.raises(CaptureFailed, match="paused"):
        Pipeline(tools_of(stage, journal, tmp_path, settings)).run(job)
    assert stage.done[-1] == "discard"


def test_an_adaptive_rate_gives_way_while_the_guest_s_writes_suffer(
    stage: Stage, journal: Journal, job: Job, tmp_path: Path
) -> None:
    writes = itertools.count(1)
    stage.disk_latency = lambda: latency_of(next(writes))
    stage.on["stream"] = lambda: wait_for(lambda: 0 < job.courtesy.rate_bytes_s < CEILING_BYTES_S)
    settings = dataclasses.replace(SETTINGS, adaptive=True)
    Pipeline(tools_of(stage, journal, tmp_path, settings)).run(job)
    assert stage.done[-1] == "end"


@pytest.mark.parametrize("step", ["stream", "verify", "publish"])
def test_an_image_that_is_not_whole_goes_and_a_pause_that_is_over_is_not_ours(
    pipeline: Pipeline, stage: Stage, job: Job, step: str
) -> None:
    """Whoever paused the guest since the capture means it."""
    stage.fails[step] = VerifyFailed("differs")
    with pytest.raises(VerifyFailed):
        pipeline.run(job)
    after = stage.done[stage.done.index(step) + 1 :]
    assert after == ["end", "discard ours"]
    assert stage.done.count("resume") == 1


def test_a_guest_that_is_paused_already_is_not_resumed(
    pipeline: Pipeline, stage: Stage, job: Job
) -> None:
    stage.state = PowerState.PAUSED
    pipeline.run(job)
    assert not {"arm", "suspend", "resume"} & set(stage.done)


def test_a_job_that_is_stopped_ends_with_its_reason_before_the_next_step(
    pipeline: Pipeline, stage: Stage, job: Job
) -> None:
    job.stop(JobInterrupted("the agent stops"))
    with pytest.raises(JobInterrupted):
        pipeline.run(job)
    assert "suspend" not in stage.done
    assert stage.done[-1] == "discard"


@pytest.mark.parametrize("step", JOURNALLED)
def test_recovery_puts_right_what_each_step_left(
    pipeline: Pipeline, stage: Stage, job: Job, journal: Journal, step: str
) -> None:
    facts = _killed_in(step, pipeline, job, journal)
    stage.done.clear()
    was_published = pipeline.recover(facts)
    assert was_published == (step == "release")
    assert ("resume" in stage.done) == (step == "pause")
    assert "end" in stage.done
    ours = step in ("stream", "verify", "publish")
    assert ("discard ours" in stage.done) == ours
    assert ("discard" in stage.done) == (not ours and not was_published)


def test_an_agent_that_goes_on_keeps_the_room_and_the_limit(
    pipeline: Pipeline, stage: Stage, job: Job, journal: Journal
) -> None:
    _killed_in("stream", pipeline, job, journal)
    journal.note(job.entry.job_id, bandwidth_limit=40)
    again = journalled_again(job, journal)
    assert (stage.holds_room, again.bandwidth_limit) == (False, 40)
    pipeline.run(again)
    assert (stage.holds_room, again.bandwidth_limit) == (True, 40)


def test_a_job_that_is_cancelled_while_its_parents_are_looked_up_does_not_wait_for_glance(
    pipeline: Pipeline,
    stage: Stage,
    new_request: NewRequest,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = SnapshotOptions(incremental=True)
    request = dataclasses.replace(new_request(), options=wanted)
    journal.accept(request, {})
    entry = journal.find(request.job_id)
    assert entry is not None
    job = Job(entry, "h", RecordedReports(journal))
    goes_on = threading.Event()
    monkeypatch.setattr(stage, "plan", lambda *_, **__: goes_on.wait(30), raising=False)
    threading.Timer(0.1, job.stop, [JobCancelled("cancelled")]).start()
    began = time.monotonic()
    try:
        with pytest.raises(JobCancelled, match="cancelled"):
            pipeline.run(job)
        assert time.monotonic() - began < 10
    finally:
        goes_on.set()


def test_an_image_that_is_gone_already_ends_the_job_before_the_guest_is_touched(
    pipeline: Pipeline, stage: Stage, job: Job
) -> None:
    stage.fails["require_queued"] = JobCancelled("the image was deleted")
    with pytest.raises(JobCancelled):
        pipeline.run(job)
    assert not {"prepare", "suspend"} & set(stage.done)


def test_a_guest_that_its_user_pauses_meanwhile_is_not_resumed_by_us(
    pipeline: Pipeline, stage: Stage, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = stage.__getattr__("prepare")

    def prepare() -> None:
        prepared()
        stage.state = PowerState.PAUSED

    monkeypatch.setattr(stage, "prepare", prepare, raising=False)
    pipeline.run(job)
    assert not {"suspend", "resume"} & set(stage.done)


def test_a_cancel_that_comes_too_late_takes_no_image_away(
    pipeline: Pipeline, stage: Stage, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Publication, "publish", lambda _: job.stop(JobCancelled("the job was cancelled"))
    )
    pipeline.run(job)
    assert stage.done[-1] == "end"


def test_recovery_of_an_instance_that_is_gone_still_removes_its_image(
    pipeline: Pipeline, stage: Stage, job: Job, journal: Journal
) -> None:
    run = begin(pipeline._tools, job, pipeline._tools.hypervisor.guest(""))
    journal.begin_step(job.entry.job_id, "stream", facts_of(run))
    stage.done.clear()
    stage.fails["find"] = InstanceNotFound("gone")
    assert not pipeline.recover(journalled_again(job, journal))
    assert stage.done == ["find", "discard ours"]


def _killed_in(name: str, pipeline: Pipeline, job: Job, journal: Journal) -> Job:
    """Run until the agent dies in a step, and return the job as the next start finds it."""

    def die(_run: Any) -> None:
        raise KeyboardInterrupt

    run = begin(pipeline._tools, job, pipeline._tools.hypervisor.guest(""))
    for step in STEPS:
        pipeline._enter(step, run)
        try:
            (die if step.name == name else step.run)(run)
        except KeyboardInterrupt:
            break
    run.closing.close()  # what is dead looks after nothing
    return journalled_again(job, journal)
