# SPDX-License-Identifier: Apache-2.0
"""A journal on a real file, a recorder in place of the way to the API, a stage for the rest."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common import context
from common.messages import InstanceRef, SnapshotRequest
from common.reports import JobAccepted, JobOutcome, JobProgress
from common.states import JobKind, JobState
from compute_agent.capture import make
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.publication import Publication
from compute_agent.snapshot import Pipeline
from tests.unit.compute_agent.stage import Stage, tools_of

NewRequest = Callable[..., SnapshotRequest]


def wait_for(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something that another thread does has come to hold."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.005)


def outcome_of(request: SnapshotRequest) -> JobOutcome:
    """Return the outcome of a request that was done."""
    return JobOutcome(
        job_id=request.job_id,
        kind=JobKind.SNAPSHOT,
        host="h",
        instance=request.instance,
        image_id=request.image_id,
        state=JobState.DONE,
        accepted_at=1.0,
        finished_at=2.0,
    )


class RecordedReports:
    """Keeps what the agent would tell the API."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal
        self.acceptances: list[JobAccepted] = []
        self.refusals: list[JobOutcome] = []
        self.outcomes: list[JobOutcome] = []
        self.told: list[JobProgress] = []

    def accepted(self, _context: context.RequestContext, message: JobAccepted) -> None:
        self.acceptances.append(message)

    def refused(self, _context: context.RequestContext, outcome: JobOutcome) -> None:
        self.refusals.append(outcome)

    def progress(self, _context: context.RequestContext, progress: JobProgress) -> None:
        self.told.append(progress)

    def finished(self, _context: context.RequestContext, outcome: JobOutcome) -> None:
        self.outcomes.append(outcome)
        if self.journal is not None:
            self.journal.finish(outcome)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


@pytest.fixture
def reports(journal: Journal) -> RecordedReports:
    return RecordedReports(journal)


@pytest.fixture
def new_request() -> NewRequest:
    def make(instance_uuid: str | None = None, deadline: float | None = None) -> SnapshotRequest:
        return SnapshotRequest(
            instance=InstanceRef(uuid=instance_uuid or str(uuid.uuid4())),
            image_id=str(uuid.uuid4()),
            job_id=str(uuid.uuid4()),
            deadline=deadline,
        )

    return make


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
    return Pipeline(tools_of(stage, journal, tmp_path))


@pytest.fixture
def job(journal: Journal, reports: RecordedReports, new_request: NewRequest) -> Job:
    request = new_request()
    journal.accept(request, {})
    entry = journal.find(request.job_id)
    assert entry is not None
    return Job(entry, "h", reports)


def journalled_again(job: Job, journal: Journal) -> Job:
    entry = journal.find(job.entry.job_id)
    assert entry is not None
    return Job(entry, "h", RecordedReports(journal))
