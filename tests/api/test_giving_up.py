# SPDX-License-Identifier: Apache-2.0
"""When the API ends a job by itself, when it must not, and what becomes of the images."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest

from api_service.store.models import JobRow
from common import clock
from common.errors import BrokerUnavailable
from common.glance import ImageServiceUnavailable
from common.messages import disk_image_id, second_image_id
from common.reports import InstanceRecord
from common.states import JobState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud

FAILED = {"state": JobState.ERROR, "reason": "no", "reason_code": "capture_failed"}


class Started:
    """A snapshot that the API has cast; `accept` and `list_jobs` are what its agent says."""

    def __init__(self, cloud: Cloud, instance: InstanceRecord) -> None:
        self.cloud, self.instance = cloud, instance
        self.image_id: str = cloud.snapshot(instance.uuid).json["image_id"]
        self.job_id: str = cloud.casts.next()["job_id"]

    def accept(self, at: float | None = None) -> None:
        """Let the agent accept."""
        when = {} if at is None else {"at": at}
        report = agent_says.accepted(self.job_id, self.instance.uuid, self.image_id, **when)
        self.cloud.report("job_accepted", report)

    def finish(self, **changes: Any) -> None:
        """Let the agent report the outcome."""
        report = agent_says.finished(self.job_id, self.instance.uuid, self.image_id, **changes)
        self.cloud.report("job_finished", report)

    def list_jobs(self, *jobs: str, at: float) -> None:
        """Let a complete report come."""
        self.cloud.announce(self.instance, at=at, open_jobs=jobs)

    def round(self) -> Any:
        """Let the reaper look; return the job as it then stands."""
        self.cloud.reaper.round()
        return self.job()

    def job(self) -> Any:
        """Return the job."""
        return self.cloud.get(f"/v1/jobs/{self.job_id}", "admin:ops").json["job"]

    def past_deadline(self) -> None:
        """Let the deadline have passed."""
        with self.cloud.database.write() as session:
            row = session.get(JobRow, self.job_id)
            assert row is not None
            row.deadline_at = clock.now() - dt.timedelta(hours=1)


@pytest.fixture
def started(cloud: Cloud, instance: InstanceRecord) -> Started:
    return Started(cloud, instance)


def test_a_job_that_two_lists_lack_is_ended(started: Started) -> None:
    started.accept()
    now = clock.epoch_s()
    started.list_jobs(str(uuid.uuid4()), at=now + 60)
    assert started.round()["state"] == "accepted", "one list may have waited in a queue"
    started.list_jobs(at=now + 120)
    job = started.round()
    assert (job["state"], job["reason_code"]) == ("error", "agent_lost_job")
    assert agent_says.HOST not in job["reason"]
    assert started.cloud.task_state(started.instance.uuid) is None
    assert started.cloud.images.records == {}


def test_a_running_job_is_one_of_them(started: Started) -> None:
    """Also where the word that it was accepted got lost."""
    started.cloud.report("job_progress", agent_says.progress(started.job_id))
    now = clock.epoch_s()
    for later in (60, 120):
        started.list_jobs(at=now + later)
    assert started.round()["reason_code"] == "agent_lost_job"


@pytest.mark.parametrize(
    "lists",
    [
        [(60, True), (120, True)],
        [(60, False), (120, True)],
        [(60, True), (120, False)],
        [(-120, False), (-60, False)],
        [(-60, False), (60, False)],
        [(5, False), (9, False)],
        [(60, False), (60, False)],
        [(120, False), (60, False)],
    ],
    ids=["named", "named now", "named before", "older", "one older", "at once", "doubled", "back"],
)
def test_a_job_is_not_ended_for_less(started: Started, lists: list[tuple[float, bool]]) -> None:
    now = clock.epoch_s()
    started.accept(at=now)
    for later, is_named in lists:
        started.list_jobs(*([started.job_id] if is_named else []), at=now + later)
    assert started.round()["state"] == "accepted"


def test_lists_that_came_before_it_say_nothing_whatever_their_clock(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    """The host's clock ran an hour ahead and was put right."""
    for later in (3600, 3660):
        cloud.announce(instance, at=clock.epoch_s() + later, open_jobs=())
    started = Started(cloud, instance)
    started.accept()
    assert started.round()["state"] == "accepted"


def test_an_agent_that_lists_no_jobs_loses_none(started: Started) -> None:
    started.accept()
    for later in (60, 120):
        started.list_jobs(at=clock.epoch_s() + later)
    # An older agent took its place.
    started.cloud.announce(started.instance, at=clock.epoch_s() + 180)
    assert started.round()["state"] == "accepted"


def test_a_heartbeat_between_changes_nothing(started: Started) -> None:
    started.accept()
    now = clock.epoch_s()
    started.list_jobs(at=now + 60)
    started.cloud.announce(complete=False, at=now + 90)
    started.list_jobs(at=now + 120)
    assert started.round()["reason_code"] == "agent_lost_job"


def test_after_a_start_nothing_is_concluded_before_the_queue_was_read(started: Started) -> None:
    """What the agent said while no API ran still waits there."""
    started.past_deadline()
    started.cloud.reaper = started.cloud.make_reaper(grace_s=3600)
    assert started.round()["state"] == "pending"
    assert started.cloud.casts.empty(), "it would be refused now"
    started.accept()
    started.finish()
    assert started.round()["state"] == "done"


def test_the_time_for_that_begins_when_the_broker_is_there(started: Started) -> None:
    started.past_deadline()
    consuming: list[bool] = [False]
    reaper = started.cloud.make_reaper(grace_s=3600, is_consuming=lambda: consuming[0])
    started.cloud.reaper = reaper
    reaper._judges_from = 0.0
    assert started.round()["state"] == "pending"
    consuming[0] = True
    assert started.round()["state"] == "pending"
    reaper._judges_from = 0.0
    assert started.round()["state"] == "error"
    consuming[0] = False
    assert started.round()["state"] == "error", "from then on silence is silence"


def test_nor_is_an_agent_taken_for_dead(started: Started) -> None:
    started.accept()
    started.cloud.agents._down_after *= 0
    started.cloud.reaper = started.cloud.make_reaper(grace_s=3600, silence_s=0)
    assert started.round()["state"] == "accepted"
    started.cloud.reaper = started.cloud.make_reaper(silence_s=0)
    assert started.round()["reason_code"] == "agent_unavailable"


def test_a_job_that_was_never_cast_ends_at_once(cloud: Cloud, instance: InstanceRecord) -> None:
    """Its record was never made: no agent can have it."""
    cloud.images.failure = ImageServiceUnavailable("away")
    cloud.snapshot(instance.uuid)
    cloud.images.failure = None
    cloud.reaper = cloud.make_reaper(grace_s=3600)
    cloud.reaper.round()
    assert cloud.task_state(instance.uuid) is None


def test_a_snapshot_that_came_to_be_after_all_is_done(started: Started) -> None:
    started.past_deadline()
    images = started.cloud.images
    images.update(
        started.image_id, {"stillframe_job_id": started.job_id, "stillframe_sha512": "ab"}
    )
    images.activate(started.image_id)
    assert started.round()["reason_code"] == "deadline_passed"
    started.finish()
    job = started.round()
    assert (job["state"], job["reason"], job["reason_code"]) == ("done", None, None)
    assert started.image_id in images.records


def test_before_its_image_was_seen_to_it_is_done_too(started: Started) -> None:
    started.past_deadline()
    started.cloud.images.failure = ImageServiceUnavailable("away")
    assert started.round()["reason_code"] == "deadline_passed"
    started.cloud.images.failure = None
    started.cloud.images.activate(started.image_id)
    started.finish()
    assert started.round()["state"] == "done"
    assert started.image_id in started.cloud.images.records


def test_an_image_that_is_gone_does_not_come_back(started: Started) -> None:
    started.past_deadline()
    assert started.round()["state"] == "error"
    assert started.cloud.images.records == {}
    started.finish()
    assert started.job()["state"] == "error"


@pytest.mark.parametrize("image_id", ["", "golden", "x" * 300])
def test_an_outcome_that_names_no_image_leaves_no_job(
    cloud: Cloud, instance: InstanceRecord, image_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent refuses a malformed cast in these words; the reaper could never be done with it."""
    report = agent_says.finished(str(uuid.uuid4()), instance.uuid, image_id, **FAILED)
    assert cloud.report("job_finished", report) == {"recorded": True}
    cloud.report("job_accepted", agent_says.accepted(str(uuid.uuid4()), instance.uuid, image_id))
    cloud.reaper.round()
    assert cloud.get("/v1/jobs", "admin:ops").json["jobs"] == []
    assert "Traceback" not in caplog.text
    assert "Dropped the outcome" in caplog.text
    assert cloud.task_state(instance.uuid) is None


def test_the_job_that_such_an_outcome_is_of_ends(started: Started) -> None:
    report = agent_says.finished(started.job_id, started.instance.uuid, "", **FAILED)
    started.cloud.report("job_finished", report)
    assert started.round()["state"] == "error"
    assert started.cloud.images.records == {}


@pytest.mark.parametrize(
    ("properties", "stays"),
    [
        ({}, True),
        ({"stillframe_job_id": "another"}, True),
        ({"stillframe_job_id": None}, False),
        ({"stillframe_job_id": None, "stillframe_sha512": "ab"}, True),
    ],
)
@pytest.mark.parametrize("status", ["active", "deactivated"])
def test_an_active_image_that_the_job_made_and_nobody_verified_goes(
    started: Started, properties: dict[str, Any], stays: bool, status: str
) -> None:
    given = {key: value or started.job_id for key, value in properties.items()}
    started.cloud.images.update(started.image_id, given)
    started.cloud.images.records[started.image_id]["status"] = status
    started.finish(**FAILED)
    started.cloud.reaper.round()
    assert (started.image_id in started.cloud.images.records) is stays


def test_the_image_in_place_of_one_that_failed_goes_whatever_its_properties(
    started: Started,
) -> None:
    second = second_image_id(started.image_id)
    started.cloud.images.create(second, {"name": "n"})
    started.finish(**FAILED)
    started.cloud.reaper.round()
    assert started.cloud.images.records == {}


def test_hidden_images_go_too(started: Started) -> None:
    hidden = disk_image_id(started.image_id, "vdb")
    record = {"stillframe_job_id": started.job_id, "stillframe_disk": "vdb", "os_hidden": True}
    started.cloud.images.create(hidden, record)
    started.finish(**FAILED)
    started.cloud.reaper.round()
    assert started.cloud.images.records == {}


def test_a_glance_that_hangs_is_asked_once_a_round(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [agent_says.instance() for _ in range(5)]
    cloud.announce(*records)
    for record in records:
        started = Started(cloud, record)
        started.finish(**FAILED)
    asked: list[str] = []

    def hang(image_id: str) -> None:
        asked.append(image_id)
        raise ImageServiceUnavailable("no answer in time")

    monkeypatch.setattr(cloud.images, "look", hang)
    cloud.reaper.round()
    assert len(asked) == 1
    monkeypatch.undo()
    cloud.reaper.round()
    assert cloud.images.records == {}


def test_a_request_does_not_wait_for_glance_twice(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> None:
        raise AssertionError("the reaper's to remove")

    monkeypatch.setattr(cloud.images, "delete", refuse)
    cloud.images.failure = ImageServiceUnavailable("no answer in time")
    assert cloud.snapshot(instance.uuid).status_code == 503
    assert cloud.task_state(instance.uuid) is None


def test_a_limit_that_could_not_be_cast_is_cast_again(started: Started) -> None:
    started.accept()
    cloud = started.cloud
    cloud.casts.failure = BrokerUnavailable("away")
    assert cloud.ledger.limit(started.job_id, 20) is not None
    assert not cloud.dispatcher.cast_limit(started.job_id)
    cloud.casts.failure = None
    cloud.reaper.round()
    cast = cloud.casts.next()
    assert (cast["method"], cast["bandwidth_limit"]) == ("adjust_job", 20)
    for _ in range(1000):
        found = cloud.ledger.find(started.job_id)
        if found is not None and not found.limit_due:
            break
    cloud.reaper.round()
    assert cloud.dispatcher.cast_limit(started.job_id)
    assert cloud.casts.empty(), "once is enough"


def test_a_limit_that_came_while_another_was_cast_is_cast_too(started: Started) -> None:
    started.accept()
    ledger = started.cloud.ledger
    ledger.limit(started.job_id, 20)
    ledger.limit(started.job_id, 30)
    ledger.was_limited(started.job_id, 20)
    assert started.cloud.dispatcher.cast_limit(started.job_id)
    assert started.cloud.casts.next()["bandwidth_limit"] == 30
