# SPDX-License-Identifier: Apache-2.0
"""A row that another release wrote, and this one cannot read, keeps nothing else from its turn."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import update

from api_service.store.models import AgentRow, JobRow
from api_service.store.policy_rows import PolicyRow
from common.reports import InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.policy_days import Clock, Days
from tests.api.rotated import Rotated
from tests.api.test_keeping_promises import age

DUE = dt.datetime(2026, 3, 3, 2, tzinfo=dt.UTC)


def spoil(cloud: Cloud, row: type[Any], named: dict[str, Any], **values: Any) -> None:
    """Write what this release does not understand."""
    with cloud.database.write() as session:
        done = session.execute(update(row).filter_by(**named).values(**values))
        assert done.rowcount == 1  # type: ignore[attr-defined]


UNREADABLE = (
    {"kind": "of-another-release"},
    {"steps": [{"title": "another shape"}]},
    {"images": ["another shape"]},
    {"context": ["another shape"]},
)


@pytest.mark.parametrize("values", UNREADABLE)
def test_the_reaper_ends_the_others_and_names_the_one_it_cannot_read_once(
    cloud: Cloud, caplog: pytest.LogCaptureFixture, values: dict[str, Any]
) -> None:
    records = [agent_says.instance() for _ in range(3)]
    cloud.announce(*records)
    jobs = []
    for record in records:
        cloud.snapshot(record.uuid)
        jobs.append(cloud.casts.next()["job_id"])
    age(cloud, 3600, "deadline_at")
    spoil(cloud, JobRow, {"id": jobs[0]}, **values)
    cloud.reaper.round()
    cloud.reaper.round()
    assert [cloud.task_state(record.uuid) for record in records[1:]] == [None, None]
    told = [one for one in caplog.records if one.levelname == "ERROR" and jobs[0] in one.message]
    assert told
    if "context" not in values:
        assert [one.exc_info for one in told] == [None], "one line, once"


def test_of_the_ended_jobs_whose_images_go_one_that_cannot_be_read_stays(cloud: Cloud) -> None:
    records = [agent_says.instance() for _ in range(2)]
    cloud.announce(*records)
    made = []
    for record in records:
        image_id = cloud.snapshot(record.uuid).json["image_id"]
        made.append((cloud.casts.next()["job_id"], image_id))
    age(cloud, 3600, "deadline_at")
    for job_id, _ in made:
        cloud.ledger.fail(job_id, "too late", "deadline_passed")
    spoil(cloud, JobRow, {"id": made[0][0]}, kind="of-another-release")
    cloud.reaper.round()
    assert list(cloud.images.records) == [made[0][1]]


@pytest.mark.parametrize("values", UNREADABLE)
def test_the_rotator_sees_to_the_other_backups(cloud: Cloud, values: dict[str, Any]) -> None:
    records = [agent_says.instance() for _ in range(2)]
    cloud.announce(*records)
    odd, fine = (Rotated(cloud, record) for record in records)
    for one in (odd, fine):
        one.take(1)
        one.take(1)
    spoil(cloud, JobRow, {"image_id": odd.made[-1]}, **values)
    cloud.rotator.round()
    assert fine.standing() == fine.made[1:]
    assert odd.standing() == odd.made


def test_no_backup_goes_while_it_is_not_known_what_lies_on_it(
    cloud: Cloud, backups: Rotated
) -> None:
    whole = backups.take(2)
    backups.increment(2, whole)
    backups.take(1)
    spoil(cloud, JobRow, {"image_id": backups.made[1]}, images=["another shape"])
    assert not cloud.rotator.round()
    assert backups.standing() == backups.made


@pytest.mark.parametrize(
    "values", [{"missed": "of-another-release"}, {"retention": {"decades": 1}}]
)
def test_the_scheduler_runs_the_other_policies(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    days = Days(cloud, Clock(monkeypatch))
    days.add_instance()
    odd, fine = days.make(name="odd"), days.make(name="fine")
    spoil(cloud, PolicyRow, {"id": odd["id"]}, **values)
    days.nights(1)
    assert days.states(fine) == ["done"]


def test_runs_of_a_policy_that_cannot_be_read_wait_and_it_is_told_of_once(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    days = Days(cloud, Clock(monkeypatch))
    days.add_instance()
    days.add_instance()
    made = days.make()
    days.begin_at(DUE)
    days.scheduler.round()
    spoil(cloud, PolicyRow, {"id": made["id"]}, missed="of-another-release")
    days.finish_all()
    for _ in range(3):
        days.scheduler.round()
    assert [one.exc_info for one in caplog.records if one.levelname == "ERROR"] == [None]
    spoil(cloud, PolicyRow, {"id": made["id"]}, missed="skip")
    days.scheduler.round()
    assert days.states(made) == ["done", "done"]


@pytest.mark.parametrize("values", [{"hypervisor": {"odd": 1}}, {"open_jobs": [{"odd": 1}]}])
def test_an_agent_lives_though_what_it_told_another_release_cannot_be_read(
    cloud: Cloud, instance: InstanceRecord, values: dict[str, Any]
) -> None:
    spoil(cloud, AgentRow, {}, **values)
    assert cloud.snapshot(instance.uuid).status_code == 202
    cloud.reaper.round()
    assert cloud.agents.live_hosts() == {agent_says.HOST}
