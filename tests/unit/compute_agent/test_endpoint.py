# SPDX-License-Identifier: Apache-2.0
"""A message becomes a job at most once, and a bad one becomes a recorded refusal."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from common import clock, context
from common.messages import SnapshotRequest
from common.states import JobKind, JobState
from compute_agent.endpoint import Endpoint
from compute_agent.jobs import Job, Jobs
from compute_agent.journal import Journal
from tests.unit.compute_agent.conftest import RecordedReports, wait_for

NewRequest = Callable[..., SnapshotRequest]


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def jobs(ran: list[str], reports: RecordedReports) -> Jobs:
    def run(job: Job) -> None:
        ran.append(job.request.job_id)

    return Jobs({JobKind.SNAPSHOT: run}, host="h", limit=1, reports=reports)


@pytest.fixture
def endpoint(journal: Journal, jobs: Jobs, reports: RecordedReports) -> Endpoint:
    return Endpoint(host="h", journal=journal, jobs=jobs, reporter=reports)


def test_a_repeated_cast_is_acknowledged_again_and_run_once(
    endpoint: Endpoint,
    jobs: Jobs,
    ran: list[str],
    reports: RecordedReports,
    new_request: NewRequest,
) -> None:
    request = new_request()
    for _ in range(3):
        endpoint.snapshot_instance(context.new(), **request.to_wire())
    wait_for(lambda: bool(reports.outcomes))
    jobs.stop(time.monotonic() + 10)
    assert ran == [request.job_id]
    assert [one.job_id for one in reports.acceptances] == [request.job_id] * 3


def test_a_request_after_its_deadline_is_refused_and_not_journalled(
    endpoint: Endpoint, journal: Journal, reports: RecordedReports, new_request: NewRequest
) -> None:
    request = new_request(deadline=clock.epoch_s() - 1)
    endpoint.snapshot_instance(context.new(), **request.to_wire())
    (refusal,) = reports.refusals
    assert (refusal.job_id, refusal.reason_code) == (request.job_id, "deadline_passed")
    assert journal.find(request.job_id) is None


def test_a_repeated_cast_that_comes_after_the_deadline_does_not_end_the_job(
    endpoint: Endpoint,
    reports: RecordedReports,
    new_request: NewRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = new_request(deadline=clock.epoch_s() + 60)
    endpoint.snapshot_instance(context.new(), **request.to_wire())
    monkeypatch.setattr(clock, "epoch_s", lambda: request.deadline + 1)
    endpoint.snapshot_instance(context.new(), **request.to_wire())
    assert reports.refusals == []
    assert len(reports.acceptances) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"instance": None, "image_id": 3},
        {"instance": {"uuid": "x"}, "image_id": "y"},
        {"options": [1], "instance": {"uuid": str(uuid.uuid4())}, "image_id": str(uuid.uuid4())},
    ],
    ids=["empty", "wrong types", "no uuids", "bad options"],
)
def test_a_malformed_cast_is_refused_in_the_ledger_if_it_names_a_job(
    endpoint: Endpoint, reports: RecordedReports, arguments: dict[str, Any]
) -> None:
    endpoint.snapshot_instance(context.new(), **arguments)
    assert reports.refusals == []
    job_id = str(uuid.uuid4())
    endpoint.snapshot_instance(context.new(), job_id=job_id, **arguments)
    (refusal,) = reports.refusals
    assert (refusal.job_id, refusal.state) == (job_id, JobState.ERROR)
    assert refusal.reason_code == "malformed_message"


def test_a_message_of_another_version_is_refused_in_the_ledger(
    endpoint: Endpoint, reports: RecordedReports, new_request: NewRequest
) -> None:
    message = {"method": "snapshot_instance", "args": new_request().to_wire(), "version": "9.0"}
    endpoint.refuse_unknown(context.new().to_dict(), message, "version 9.0")
    assert [one.reason_code for one in reports.refusals] == ["unsupported_rpc_version"]
