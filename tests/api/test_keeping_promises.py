# SPDX-License-Identifier: Apache-2.0
"""The dispatcher and the reaper: a 202 ends in `active` or in a reason, whatever happens."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest
from sqlalchemy import update

from api_service.store.lease import Lease
from api_service.store.models import JobRow
from common import clock
from common.errors import AgentUnavailable, BrokerUnavailable
from common.glance import ImageServiceUnavailable
from common.reports import InstanceRecord
from common.states import JobState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.memory_images import MemoryImages


def age(cloud: Cloud, seconds: float, *columns: str) -> None:
    """Let every job have happened that much earlier."""
    with cloud.database.write() as session:
        for job in session.query(JobRow):
            for name in columns:
                value = getattr(job, name)
                if value is not None:
                    setattr(job, name, value - dt.timedelta(seconds=seconds))


def job(cloud: Cloud) -> Any:
    """Return the only job."""
    (one,) = cloud.get("/v1/jobs", "admin:ops").json["jobs"]
    return one


def test_a_job_that_could_not_be_cast_is_cast_again(cloud: Cloud, instance: InstanceRecord) -> None:
    for failure in (BrokerUnavailable("away"), AgentUnavailable("no queue")):
        cloud.casts.failure = failure
        cloud.dispatcher.poke("unknown")
    assert cloud.snapshot(instance.uuid).status_code == 202
    cloud.casts.failure = None
    age(cloud, 10, "created_at", "cast_at")
    cloud.reaper.round()
    assert cloud.casts.next()["instance"]["uuid"] == instance.uuid
    assert job(cloud)["state"] == "pending"


def test_a_cast_that_was_lost_is_cast_again_with_the_same_id(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.snapshot(instance.uuid)
    first = cloud.casts.next()
    cloud.reaper.round()
    again = cloud.casts.next()
    assert (again["job_id"], again["image_id"]) == (first["job_id"], first["image_id"])


def test_an_accepted_job_is_not_cast_again(cloud: Cloud, instance: InstanceRecord) -> None:
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    cloud.report("job_accepted", agent_says.accepted(job_id, instance.uuid, image_id))
    cloud.reaper.round()
    assert cloud.casts.empty()


def test_past_the_deadline_a_job_ends_with_a_reason_and_leaves_nothing(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.casts.failure = BrokerUnavailable("away")
    cloud.snapshot(instance.uuid)
    age(cloud, 3600, "deadline_at")
    cloud.reaper.round()
    assert (job(cloud)["state"], job(cloud)["reason_code"]) == ("error", "deadline_passed")
    assert job(cloud)["reason"]
    assert cloud.images.records == {}
    assert cloud.task_state(instance.uuid) is None


def test_an_acceptance_after_the_deadline_does_not_revive_a_job(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    age(cloud, 3600, "deadline_at")
    cloud.reaper.round()
    cloud.report("job_accepted", agent_says.accepted(job_id, instance.uuid, image_id))
    cloud.report("job_progress", agent_says.progress(job_id))
    assert job(cloud)["state"] == "error"
    assert cloud.task_state(instance.uuid) is None


def accepted(cloud: Cloud, instance: InstanceRecord) -> tuple[str, str]:
    """Let a snapshot be accepted; return job and image id."""
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    cloud.report("job_accepted", agent_says.accepted(job_id, instance.uuid, image_id))
    return job_id, image_id


def test_the_job_of_an_agent_that_is_gone_ends_with_a_reason(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    accepted(cloud, instance)
    age(cloud, 7200, "reported_at", "accepted_at", "created_at")
    cloud.agents._down_after *= 0
    cloud.reaper.round()
    assert (job(cloud)["state"], job(cloud)["reason_code"]) == ("error", "agent_unavailable")
    assert agent_says.HOST not in job(cloud)["reason"]
    assert cloud.images.records == {}
    assert cloud.task_state(instance.uuid) is None


def test_a_silent_job_of_a_living_agent_goes_on(cloud: Cloud, instance: InstanceRecord) -> None:
    accepted(cloud, instance)
    age(cloud, 7200, "reported_at", "accepted_at", "created_at")
    cloud.reaper.round()
    assert job(cloud)["state"] == "accepted"


def test_a_job_lately_heard_of_outlives_its_agents_silence(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    accepted(cloud, instance)
    cloud.agents._down_after *= 0
    cloud.reaper.round()
    assert job(cloud)["state"] == "accepted"


def test_an_active_image_of_a_vanished_agents_job_stays(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    """Every byte may be right: Glance had them all when it became active."""
    _, image_id = accepted(cloud, instance)
    cloud.images.activate(image_id)
    age(cloud, 7200, "reported_at", "accepted_at", "created_at")
    cloud.agents._down_after *= 0
    cloud.reaper.round()
    assert job(cloud)["state"] == "error"
    assert image_id in cloud.images.records


def test_an_image_that_could_not_be_deleted_is_deleted_later(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.snapshot(instance.uuid)
    age(cloud, 3600, "deadline_at")
    cloud.images.failure = ImageServiceUnavailable("away")
    cloud.reaper.round()
    assert job(cloud)["state"] == "error"
    assert cloud.task_state(instance.uuid) is None
    cloud.images.failure = None
    cloud.reaper.round()
    assert cloud.images.records == {}


def test_what_a_killed_request_left_is_cleared_up(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the record's creation and the job's release: neither is cast nor kept."""

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(cloud.ledger, "make_castable", die)
    with pytest.raises(Killed):
        cloud.snapshot(instance.uuid)
    monkeypatch.undo()
    assert len(cloud.images.records) == 1
    age(cloud, 3600, "created_at", "deadline_at")
    cloud.reaper.round()
    assert cloud.casts.empty()
    assert job(cloud)["state"] == "error"
    assert cloud.images.records == {}
    assert cloud.task_state(instance.uuid) is None


def test_a_request_that_the_reaper_overtook_does_not_answer_202(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    """Glance took minutes to make the record; by then the job had been ended."""
    cloud.images.gate = threading.Event()
    replies: list[Any] = []
    request = threading.Thread(target=lambda: replies.append(cloud.snapshot(instance.uuid)))
    request.start()
    for _ in range(1000):
        if cloud.task_state(instance.uuid):
            break
    age(cloud, 3600, "deadline_at", "created_at")
    cloud.reaper.round()
    cloud.images.gate.set()
    request.join(20)
    assert job(cloud)["state"] == "error"
    assert replies[0].status_code >= 400
    cloud.reaper.round()
    assert cloud.images.records == {}
    assert cloud.task_state(instance.uuid) is None


def test_one_bad_job_does_not_keep_the_reaper_from_the_others(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = agent_says.instance(), agent_says.instance()
    cloud.announce(first, second)
    for record in (first, second):
        cloud.snapshot(record.uuid)
    age(cloud, 3600, "deadline_at")
    fail, bad = cloud.ledger.fail, []

    def fails_once(*arguments: Any) -> Any:
        if not bad:
            bad.append(arguments)
            raise RuntimeError("a defect")
        return fail(*arguments)

    monkeypatch.setattr(cloud.ledger, "fail", fails_once)
    cloud.reaper.round()
    states = {one["state"] for one in cloud.get("/v1/jobs", "admin:ops").json["jobs"]}
    assert JobState.ERROR in states


def test_only_one_process_reaps_at_a_time(
    database_url: str, images: MemoryImages, cloud: Cloud
) -> None:
    other = Cloud(database_url, images, cloud.casts)
    mine = Lease(cloud.database, "reaper", "a", 30)
    theirs = Lease(other.database, "reaper", "b", 30)
    assert mine.take()
    assert not theirs.take()
    assert mine.take(), "its holder renews it"
    other.database.engine.dispose()


def test_a_dead_reapers_lease_lapses(cloud: Cloud) -> None:
    assert Lease(cloud.database, "reaper", "dead", -1).take()
    assert Lease(cloud.database, "reaper", "heir", 30).take()
    assert not Lease(cloud.database, "reaper", "dead", 30).take()


def test_the_reaper_runs_until_it_is_stopped(cloud: Cloud, instance: InstanceRecord) -> None:
    """As a service: its first round comes at once."""
    cloud.casts.failure = BrokerUnavailable("away")
    cloud.snapshot(instance.uuid)
    with cloud.database.write() as session:
        session.execute(update(JobRow).values(deadline_at=clock.now() - dt.timedelta(hours=1)))
    reaper = cloud.make_reaper(interval_s=0.05)
    reaper.start()
    assert reaper.alive()
    for _ in range(1000):
        if job(cloud)["state"] == "error":
            break
    reaper.stop(clock.epoch_s() + 10)
    assert job(cloud)["state"] == "error"
    assert not reaper.alive()
