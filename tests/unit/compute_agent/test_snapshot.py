# SPDX-License-Identifier: Apache-2.0
"""The order of the steps, and of their undoing: the guest runs on before anything else."""

from __future__ import annotations

import dataclasses
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
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
from common.messages import CaptureFigures, DiskImage, SnapshotRequest
from common.states import PowerState
from compute_agent import release
from compute_agent.capture import make
from compute_agent.capture.base import Export
from compute_agent.capture.workspace import Directories
from compute_agent.guest import description
from compute_agent.guest.errors import HypervisorUnavailable
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.publication import Publication
from compute_agent.run import begin, facts_of
from compute_agent.snapshot import JOURNALLED, STEPS, Pipeline
from compute_agent.tools import Settings, Tools
from tests.unit.compute_agent.conftest import RecordedReports, wait_for

NewRequest = Callable[..., SnapshotRequest]

DISK = "<disk type='file'><source file='/d'/><target dev='vda'/></disk>"
DOMAIN = f"<domain><devices>{DISK}</devices></domain>"
FIGURES = CaptureFigures(method="backup", consistency="crash", captured_at=1.0)


class Stage:
    """Every seam of the pipeline at once: notes what is done, and fails where it is told to."""

    method, pausable, since, uuid, budget_s = "backup", True, None, "guest", 5.0

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.state = PowerState.RUNNING

    def do(self, what: str) -> None:
        self.done.append(what)
        if what in self.fails:
            raise self.fails[what]

    def describe(self) -> ET.Element:
        return description.parse(DOMAIN)

    def guest(self, _uuid: str) -> Stage:
        self.do("find")
        return self

    def capacity_bytes(self, _target: str) -> int:
        return 1 << 30

    def power_state(self) -> PowerState:
        return self.state

    def is_active(self) -> bool:
        return True

    def can_be_backed_up(self, _domain: Any) -> bool:
        return True

    def was_shut_down_in_order(self) -> bool:
        return False

    def pause_since(self, _since: float, _timeout_s: float) -> None:
        return None

    def exports(self) -> tuple[Export, ...]:
        return (Export(target="vda", socket_path="/s", name="vda"),)

    def growing(self) -> tuple[Path, ...]:
        return ()

    def reserve_bytes(self) -> int:
        return 0

    def run_on_after_io_error(self) -> None:
        pass

    def arm(self, _uuid: str, **_: Any) -> None:
        self.do("arm")

    def disarm(self, _uuid: str) -> None:
        self.do("disarm")

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name in ("suspend", "resume", "prepare", "begin", "end"):
            return lambda: self.do(name)
        raise AttributeError(name)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(make, "by_method", lambda *_: stage)
    for name in ("require_queued", "describe", "verify", "publish"):
        monkeypatch.setattr(Publication, name, lambda *_, name=name: stage.do(name))

    def stream(publication: Publication, _exports: Any) -> None:
        publication.take_for_ours()
        stage.do("stream")

    def discard(publication: Publication) -> None:
        stage.do("discard ours" if publication._begun else "discard")

    monkeypatch.setattr(Publication, "stream", stream)
    monkeypatch.setattr(Publication, "discard", discard)
    return stage


@pytest.fixture
def pipeline(stage: Stage, journal: Journal, tmp_path: Path) -> Pipeline:
    anything: Any = stage
    return Pipeline(
        Tools(
            hypervisor=anything,
            images=anything,
            journal=journal,
            increments=anything,
            directories=Directories(scratch=tmp_path, sockets=tmp_path),
            throttle=anything,
            sentinel=anything,
            settings=Settings(
                method="auto",
                pause="always",
                freeze="auto",
                freeze_timeout_s=1,
                disks="root",
                checkpoints=False,
                adaptive=False,
                latency_factor=4,
                image_format="qcow2",
                compression=None,
                scratch_reserve_percent=0,
                scratch_min_free_bytes=0,
                upload_retries=0,
                progress_log_interval_s=1,
            ),
        )
    )


@pytest.fixture
def job(journal: Journal, reports: RecordedReports, new_request: NewRequest) -> Job:
    request = new_request()
    journal.accept(request, {})
    entry = journal.find(request.job_id)
    assert entry is not None
    return Job(entry, "h", reports)


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
    def die(_run: Any) -> None:
        raise KeyboardInterrupt

    killed = [dataclasses.replace(one, run=die) if one.name == step else one for one in STEPS]
    facts = _facts_when_killed_in(pipeline, killed, job, journal)
    stage.done.clear()
    was_published = pipeline.recover(facts)
    assert was_published == (step == "release")
    assert ("resume" in stage.done) == (step == "pause")
    assert "end" in stage.done
    ours = step in ("stream", "verify", "publish")
    assert ("discard ours" in stage.done) == ours
    assert ("discard" in stage.done) == (not ours and not was_published)


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


def test_what_cannot_be_put_right_at_the_start_is_marked_and_the_image_goes(
    pipeline: Pipeline, stage: Stage, job: Job, journal: Journal
) -> None:
    run = begin(pipeline._tools, job, pipeline._tools.hypervisor.guest(""))
    journal.begin_step(job.entry.job_id, "stream", facts_of(run))
    stage.fails["end"] = InstanceBusy("libvirt holds the domain")
    again = _again(job, journal)
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
    again = _again(job, journal)
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
    again = _again(job, journal)
    # The figures of its capture were noted before.
    journal.note(job.entry.job_id, figures=FIGURES.to_wire())
    assert pipeline.recover(_again(job, journal))
    again.result.images = list(job.result.images)
    again.finish(None)
    assert settled == []

    stage.fails.clear()
    stage.uuid = job.request.instance.uuid
    release.give_back_all(pipeline._tools)
    assert settled == [(job.entry.job_id, job.request.image_id)]


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
    assert not pipeline.recover(_again(job, journal))
    assert stage.done == ["find", "discard ours"]


def _facts_when_killed_in(pipeline: Pipeline, steps: list[Any], job: Job, journal: Journal) -> Job:
    """Run until the step that dies, and return the job as the next start finds it."""
    run = begin(pipeline._tools, job, pipeline._tools.hypervisor.guest(""))
    for step in steps:
        pipeline._enter(step, run)
        try:
            step.run(run)
        except KeyboardInterrupt:
            break
    return _again(job, journal)


def _again(job: Job, journal: Journal) -> Job:
    entry = journal.find(job.entry.job_id)
    assert entry is not None
    return Job(entry, "h", RecordedReports(journal))
