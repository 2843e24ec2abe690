# SPDX-License-Identifier: Apache-2.0
"""A backup is a snapshot to the agent, which says of which type it is in all that it reports."""

from __future__ import annotations

import time
import uuid

import pytest

from common import context
from common.messages import BackupRequest, InstanceRef, SnapshotRequest
from common.states import IMAGE_KINDS, JobKind
from compute_agent.endpoint import Endpoint
from compute_agent.jobs import Job, Jobs
from compute_agent.journal import Journal
from compute_agent.snapshot import Pipeline
from tests.unit.compute_agent.conftest import RecordedReports, wait_for
from tests.unit.compute_agent.test_jobs import LONG_S
from tests.unit.compute_agent.test_jobs import Pipeline as HeldWork


@pytest.fixture
def request_() -> BackupRequest:
    return BackupRequest(
        instance=InstanceRef(uuid=str(uuid.uuid4())),
        image_id=str(uuid.uuid4()),
        backup_type="daily",
        rotation=2,
    )


def test_the_hosts_limit_of_snapshots_is_one_of_backups_too(
    journal: Journal, reports: RecordedReports
) -> None:
    """Nova's bounds snapshots alone."""
    work = HeldWork()
    jobs = Jobs(dict.fromkeys(IMAGE_KINDS, work.run), host="h", limit=1, reports=reports)
    for kind in (BackupRequest, SnapshotRequest) * 2:
        terms = {"backup_type": "daily"} if kind is BackupRequest else {}
        ids = {"instance": InstanceRef(uuid=str(uuid.uuid4())), "image_id": str(uuid.uuid4())}
        request = kind(**ids, **terms)
        journal.accept(request, {})
        entry = journal.find(request.job_id)
        assert entry is not None
        jobs.submit(entry)
    assert work.began.acquire(timeout=LONG_S)
    work.go.release(4)
    wait_for(lambda: len(reports.outcomes) == 4)
    jobs.stop(time.monotonic() + LONG_S)
    assert work.most == 1


@pytest.mark.usefixtures("stage")
def test_its_task_state_is_image_backup_until_the_upload(
    pipeline: Pipeline, journal: Journal, reports: RecordedReports, request_: BackupRequest
) -> None:
    journal.accept(request_, {})
    entry = journal.find(request_.job_id)
    assert entry is not None
    assert entry.request == request_, "as it was accepted"
    pipeline.run(Job(entry, "h", reports))
    told = [one.task_state for one in reports.told]
    assert list(dict.fromkeys(told)) == ["image_backup", "image_uploading"]


def test_every_report_says_of_which_type_it_is(
    journal: Journal, reports: RecordedReports, request_: BackupRequest
) -> None:
    ran: list[JobKind] = []
    work = dict.fromkeys(IMAGE_KINDS, lambda job: ran.append(job.request.kind))
    jobs = Jobs(work, host="h", limit=1, reports=reports)
    endpoint = Endpoint(host="h", journal=journal, jobs=jobs, reporter=reports)  # type: ignore[arg-type]
    endpoint.backup_instance(context.new(), **request_.to_wire())
    wait_for(lambda: bool(reports.outcomes))
    jobs.stop(time.monotonic() + 10)
    assert ran == [JobKind.BACKUP]
    for report in (*reports.acceptances, *reports.outcomes):
        assert (report.kind, report.backup_type, report.rotation) == ("backup", "daily", 2)
    assert (len(reports.acceptances), len(reports.outcomes)) == (1, 1)
