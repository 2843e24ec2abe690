# SPDX-License-Identifier: Apache-2.0
"""What an agent's end interrupted is gone on with, or ended, by the rules of its own kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from common.messages import (
    CreateRequest,
    Flavor,
    InstanceRef,
    JobRequest,
    RebuildRequest,
    SnapshotRequest,
    VerifyRequest,
)
from common.states import JobKind, JobState
from compute_agent import rebuild
from compute_agent.jobs import Job, Jobs
from compute_agent.journal import Entry, Journal
from compute_agent.recovery import Recovery
from tests.unit.compute_agent.conftest import RecordedReports
from tests.unit.compute_agent.stage import Stage, tools_of

ID = "5b7a1ad4-0000-4000-8000-000000000000"
INSTANCE = InstanceRef(uuid=ID, project_id="p", user_id="u", name="n")
FLAVOR = Flavor(name="small", vcpus=1, memory_mib=64, disk_gib=1)
REQUESTS: tuple[JobRequest, ...] = (
    SnapshotRequest(instance=INSTANCE, image_id=ID, job_id=ID),
    CreateRequest(instance=INSTANCE, image_id=ID, job_id=ID, flavor=FLAVOR),
    VerifyRequest(instance=INSTANCE, image_id=ID, job_id=ID),
    RebuildRequest(instance=INSTANCE, image_id=ID, job_id=ID),
)


class EmptyHost(Stage):
    """A host with no guest at all."""

    def disk_paths(self) -> frozenset[str]:
        return frozenset()

    def instances(self) -> list[str]:
        return []


@pytest.mark.parametrize("step", [step.name for step in rebuild.STEPS[4:]])
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: str(request.kind))
def test_only_a_rebuild_is_gone_on_with_in_a_step_that_others_have_by_that_name_too(
    journal: Journal, tmp_path: Path, request_: JobRequest, step: str
) -> None:
    journal.accept(request_, {})
    journal.begin_step(ID, step, {})
    submitted: list[Entry] = []
    undone: list[JobKind] = []

    def undo(job: Job) -> bool:
        undone.append(job.entry.request.kind)
        return False

    Recovery(
        dict.fromkeys(JobKind, undo),
        host="h",
        tools=tools_of(EmptyHost(), journal, tmp_path),
        jobs=cast(Jobs, SimpleNamespace(submit=submitted.append)),
        reports=RecordedReports(journal),
    ).start()
    goes_on = request_.kind is JobKind.REBUILD
    assert ([entry.job_id for entry in submitted], undone) == (
        ([ID], []) if goes_on else ([], [request_.kind])
    )


def test_a_new_instance_that_could_not_be_put_right_is_not_said_to_be_made(
    journal: Journal, tmp_path: Path
) -> None:
    journal.accept(REQUESTS[1], {})
    journal.begin_step(ID, "release", {})

    def stumble(_job: Job) -> bool:
        raise OSError(5, "Input/output error")

    reports = RecordedReports(journal)
    Recovery(
        dict.fromkeys(JobKind, stumble),
        host="h",
        tools=tools_of(EmptyHost(), journal, tmp_path),
        jobs=cast(Jobs, SimpleNamespace()),
        reports=reports,
    ).start()
    assert [outcome.state for outcome in reports.outcomes] == [JobState.ERROR]
