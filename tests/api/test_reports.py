# SPDX-License-Identifier: Apache-2.0
"""What the agents report: shown, recorded once, and harmless when doubled or reordered."""

from __future__ import annotations

import itertools
import logging
import uuid
from typing import Any

import pytest

from common import clock
from common.errors import MalformedMessage
from common.reports import InstanceRecord
from common.states import JobState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud


class Started:
    """A snapshot that the API has cast."""

    def __init__(self, cloud: Cloud, instance: InstanceRecord) -> None:
        self.cloud, self.uuid = cloud, instance.uuid
        self.image_id: str = cloud.snapshot(instance.uuid).json["image_id"]
        self.job_id: str = cloud.casts.next()["job_id"]

    def accepted(self, **changes: Any) -> None:
        """Let the agent accept."""
        report = agent_says.accepted(self.job_id, self.uuid, self.image_id, **changes)
        self.cloud.report("job_accepted", report)

    def progress(self, **changes: Any) -> None:
        """Let the agent report progress."""
        self.cloud.report("job_progress", agent_says.progress(self.job_id, **changes))

    def finished(self, **changes: Any) -> Any:
        """Let the agent report the outcome."""
        report = agent_says.finished(self.job_id, self.uuid, self.image_id, **changes)
        return self.cloud.report("job_finished", report)

    def job(self) -> Any:
        """Return the job as `/v1/jobs` shows it."""
        return self.cloud.get(f"/v1/jobs/{self.job_id}").json["job"]

    def server(self) -> Any:
        """Return the server."""
        return self.cloud.server(self.uuid)


@pytest.fixture
def started(cloud: Cloud, instance: InstanceRecord) -> Started:
    return Started(cloud, instance)


def fail(started: Started, **changes: Any) -> None:
    """Let the agent report a failure."""
    nothing = {"size_bytes": None, "sha512": None, "capture": None}
    started.finished(
        state=JobState.ERROR,
        reason="the guest has no usable disk",
        reason_code="no_usable_disk",
        **(nothing | changes),
    )


def test_progress_moves_the_task_state_and_the_percentage(started: Started) -> None:
    started.accepted()
    assert started.job()["state"] == "accepted"
    started.progress(step="capture", task_state="image_snapshot", bytes_done=0, bytes_total=0)
    assert started.server()["OS-EXT-STS:task_state"] == "image_snapshot"
    started.progress()
    body = started.server()
    assert (body["OS-EXT-STS:task_state"], body["progress"]) == ("image_uploading", 50)
    job = started.job()
    assert (job["state"], job["step"], job["bytes_done"], job["eta_s"]) == (
        "running",
        "stream",
        500,
        5.0,
    )


def test_an_outcome_frees_the_instance_and_keeps_the_figures(started: Started) -> None:
    started.accepted()
    started.progress()
    started.cloud.images.activate(started.image_id)
    started.finished()
    assert started.server()["OS-EXT-STS:task_state"] is None
    job = started.job()
    assert (job["state"], job["reason"]) == ("done", None)
    assert (job["size_bytes"], job["sha512"]) == (1000, "ab" * 64)
    assert job["capture"]["pause_ms"] == 31.5
    assert [step["name"] for step in job["steps"]] == ["capture"]
    assert started.image_id in started.cloud.images.records


def test_a_failure_removes_the_image_and_keeps_the_reason(started: Started) -> None:
    started.accepted()
    fail(started)
    started.cloud.reaper.round()
    assert started.cloud.images.records == {}
    assert started.server()["OS-EXT-STS:task_state"] is None
    job = started.job()
    assert (job["state"], job["reason_code"]) == ("error", "no_usable_disk")
    assert job["reason"] == "the guest has no usable disk"


def test_a_failed_jobs_image_goes_when_glance_is_back(started: Started) -> None:
    from common.glance import ImageServiceUnavailable

    started.cloud.images.failure = ImageServiceUnavailable("away")
    fail(started)
    assert started.server()["OS-EXT-STS:task_state"] is None
    started.cloud.images.failure = None
    started.cloud.reaper.round()
    assert started.cloud.images.records == {}


def test_an_outcome_is_confirmed_each_time_it_comes(started: Started) -> None:
    """The agent repeats it until it is answered."""
    started.accepted()
    first = started.finished()
    assert first == started.finished()
    assert started.job()["state"] == "done"


def test_an_outcome_that_comes_late_does_not_touch_the_next_job(
    started: Started, cloud: Cloud, instance: InstanceRecord
) -> None:
    started.finished()
    Started(cloud, instance)
    started.finished()
    started.progress()
    assert cloud.task_state(instance.uuid) == "image_snapshot_pending"


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["accepted", "progress", "finished"]))
)
def test_in_whatever_order_reports_come_the_end_is_the_same(
    started: Started, order: tuple[str, ...]
) -> None:
    started.cloud.images.activate(started.image_id)
    for method in order + order:
        getattr(started, method)()
    assert started.job()["state"] == "done"
    body = started.server()
    assert (body["OS-EXT-STS:task_state"], body["status"]) == (None, "ACTIVE")
    assert started.job()["size_bytes"] == 1000


def test_the_first_outcome_stands(started: Started) -> None:
    fail(started)
    started.finished()
    assert started.job()["state"] == "error"


def test_older_progress_does_not_overwrite_newer(started: Started) -> None:
    now = clock.epoch_s()
    started.progress(bytes_done=800, at=now)
    started.progress(bytes_done=300, at=now - 1)
    assert started.job()["bytes_done"] == 800
    assert started.server()["progress"] == 80


@pytest.mark.parametrize("done", [0, 1, 999, 1000, 5000])
def test_a_percentage_is_a_percentage(started: Started, done: int) -> None:
    started.progress(bytes_done=done)
    assert 0 <= started.server()["progress"] <= 100


def test_a_job_that_another_service_cast_appears(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id, image_id = str(uuid.uuid4()), str(uuid.uuid4())
    cloud.report("job_accepted", agent_says.accepted(job_id, instance.uuid, image_id))
    job = cloud.get(f"/v1/jobs/{job_id}").json["job"]
    assert (job["state"], job["image_id"]) == ("accepted", image_id)
    cloud.report("job_progress", agent_says.progress(job_id))
    assert cloud.server(instance.uuid)["progress"] == 50
    assert cloud.snapshot(instance.uuid).status_code == 409
    cloud.report("job_finished", agent_says.finished(job_id, instance.uuid, image_id))
    assert cloud.task_state(instance.uuid) is None
    assert cloud.snapshot(instance.uuid).status_code == 202


def test_an_accepted_foreign_job_holds_its_instance_at_once(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    report = agent_says.accepted(str(uuid.uuid4()), instance.uuid, str(uuid.uuid4()))
    cloud.report("job_accepted", report)
    assert cloud.task_state(instance.uuid) is not None
    assert cloud.snapshot(instance.uuid).status_code == 409


def test_an_outcome_of_an_unknown_job_is_recorded(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id = str(uuid.uuid4())
    report = agent_says.finished(job_id, instance.uuid, str(uuid.uuid4()))
    cloud.report("job_finished", report)
    assert cloud.get(f"/v1/jobs/{job_id}").json["job"]["state"] == "done"
    assert cloud.task_state(instance.uuid) is None


def test_a_foreign_job_does_not_take_an_instance_that_is_held(
    started: Started, cloud: Cloud, instance: InstanceRecord
) -> None:
    foreign = str(uuid.uuid4())
    cloud.report("job_accepted", agent_says.accepted(foreign, instance.uuid, str(uuid.uuid4())))
    cloud.report("job_finished", agent_says.finished(foreign, instance.uuid, str(uuid.uuid4())))
    assert cloud.task_state(instance.uuid) == "image_snapshot_pending"
    assert started.job()["state"] == "pending"


def test_a_foreign_jobs_active_image_is_never_deleted(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    """A cast from elsewhere may name an image that was never the job's."""
    precious = str(uuid.uuid4())
    cloud.images.create(precious, {"name": "golden"})
    cloud.images.activate(precious)
    report = agent_says.finished(
        str(uuid.uuid4()), instance.uuid, precious, state=JobState.ERROR, reason="refused"
    )
    cloud.report("job_finished", report)
    cloud.reaper.round()
    assert precious in cloud.images.records


def test_another_projects_job_does_not_exist(started: Started, cloud: Cloud) -> None:
    assert cloud.get(f"/v1/jobs/{started.job_id}", "eve:p-other").status_code == 404
    assert cloud.get("/v1/jobs", "eve:p-other").json["jobs"] == []
    (listed,) = cloud.get("/v1/jobs").json["jobs"]
    assert listed["id"] == started.job_id


@pytest.mark.parametrize("method", ["host_report", "job_accepted", "job_progress", "job_finished"])
@pytest.mark.parametrize("report", [None, {}, [], "text", {"job_id": 7}])
def test_a_malformed_report_is_refused_and_changes_nothing(
    cloud: Cloud, instance: InstanceRecord, method: str, report: Any
) -> None:
    with pytest.raises(MalformedMessage):
        cloud.report(method, report)
    assert cloud.task_state(instance.uuid) is None


def test_unknown_fields_are_ignored(started: Started) -> None:
    """A newer agent may say more."""
    report = agent_says.accepted(started.job_id, started.uuid, started.image_id)
    started.cloud.report("job_accepted", report | {"colour": "red"})
    assert started.job()["state"] == "accepted"


def test_the_log_tells_the_story(
    cloud: Cloud, instance: InstanceRecord, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    started = Started(cloud, instance)
    started.accepted()
    started.finished()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    for words in (
        ["demo", "p-demo", started.image_id, started.job_id],
        [started.job_id, agent_says.HOST],
        ["accepted", started.job_id],
        [started.image_id, "active", "31.5 ms"],
    ):
        assert any(all(word in line for word in words) for line in told), (words, told)


def test_the_log_tells_why_not(started: Started, caplog: pytest.LogCaptureFixture) -> None:
    fail(started)
    (line,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    assert "the guest has no usable disk" in line
    assert started.image_id in line
