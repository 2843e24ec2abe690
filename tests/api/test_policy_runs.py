# SPDX-License-Identifier: Apache-2.0
"""A policy's runs: due when they should be, asked for once, and told."""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from api_service.policy_parts import PolicyLimits
from api_service.policy_runner import PolicyRunner
from api_service.store.ledger import Ledger
from api_service.store.policies import Policies
from api_service.store.policy_runs import RunQuery
from common.errors import AgentUnavailable
from common.messages import SnapshotOptions
from common.states import JobState
from tests.api.clouds import Cloud
from tests.api.policy_days import BEGIN, POLICIES, Clock, Days

DUE = dt.datetime(2026, 3, 3, 2, tzinfo=dt.UTC)


@pytest.fixture
def days(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Days:
    return Days(cloud, Clock(monkeypatch))


@pytest.fixture
def another(database_url: str, cloud: Cloud) -> Iterator[Callable[..., Cloud]]:
    """Make another API process on the same database."""
    with ExitStack() as closing:

        def make(**parts: Any) -> Cloud:
            made = Cloud(database_url, cloud.images, cloud.casts, **parts)
            closing.callback(made.database.engine.dispose)
            return made

        yield make


def test_a_run_is_asked_for_when_it_is_due_in_the_name_of_the_policys_maker(days: Days) -> None:
    record, made = days.add_instance(), days.make(freeze="auto")
    days.begin_at(DUE - dt.timedelta(seconds=1))
    days.scheduler.round()
    assert days.runs(made) == []
    days.begin_at(DUE + dt.timedelta(seconds=3))
    days.scheduler.round()
    cast = days.cloud.casts.next()
    assert (cast["method"], cast["backup_type"]) == ("backup_instance", "nightly")
    assert SnapshotOptions.from_wire(cast["options"]) == SnapshotOptions(
        freeze="auto", incremental=False
    )
    assert (cast["caller"].user_id, cast["caller"].project_id) == ("demo", "p-demo")
    assert cast["caller"].auth_token is None
    (run,) = days.runs(made)
    assert (run["state"], run["due_at"]) == ("asked", "2026-03-03T02:00:00Z")
    assert run["job_id"] == cast["job_id"]
    image = days.cloud.images.records[cast["image_id"]]
    assert image["name"] == "web-nightly-20260303T020000Z"
    assert days.cloud.task_state(record.uuid) == "image_backup"

    days.round()
    (run,) = days.runs(made)
    assert (run["state"], run["reason"]) == ("done", None)
    assert days.cloud.task_state(record.uuid) is None
    policy = days.ask("GET", f"{POLICIES}/{made['id']}").json["policy"]
    assert policy["next_due_at"] == "2026-03-04T02:00:00Z"


def test_the_jobs_of_a_policy_are_found_and_name_it(days: Days) -> None:
    record, made = days.add_instance(), days.make()
    days.ask("POST", f"{POLICIES}/{made['id']}/run")
    days.round()
    days.clock.advance(seconds=1)
    assert days.cloud.snapshot(record.uuid).status_code == 202
    (job,) = days.ask("GET", f"/v1/jobs?policy_id={made['id']}").json["jobs"]
    (run,) = days.runs(made)
    assert (job["id"], job["policy_id"], job["kind"]) == (run["job_id"], made["id"], "backup")
    jobs = days.ask("GET", "/v1/jobs").json["jobs"]
    assert [one["policy_id"] for one in jobs] == [None, made["id"]]
    shown = days.ask("GET", f"/v1/jobs/{job['id']}").json["job"]
    assert shown["policy_id"] == made["id"]


def test_each_run_of_a_policy_is_a_request_of_its_own(days: Days) -> None:
    record, _ = days.add_instance(), days.make()
    days.nights(2)
    url = f"/v2.1/servers/{record.uuid}/os-instance-actions"
    actions = days.ask("GET", url).json["instanceActions"]
    assert [one["action"] for one in actions] == ["createBackup"] * 2
    assert len({one["request_id"] for one in actions}) == 2


def test_two_processes_ask_for_each_run_once(days: Days, another: Callable[..., Cloud]) -> None:
    """Even where both believe that it is theirs to do."""
    for _ in range(4):
        days.add_instance()
    made = days.make()
    days.begin_at(DUE)
    limits = PolicyLimits(backups_per_host=10)
    schedulers = [another(policy_limits=limits).policies.scheduler(5.0) for _ in range(2)]
    start = threading.Barrier(2)

    def look(number: int) -> None:
        start.wait(10)
        for _ in range(5):
            schedulers[number].round()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(look, range(2)))
    days.clock.advance(minutes=10)
    days.scheduler.round()
    assert len(days.cloud.ledger.jobs()) == 4
    assert len(days.cloud.images.created) == 4
    assert sorted(run["job_id"] for run in days.runs(made)) == sorted(
        job.id for job in days.cloud.ledger.jobs()
    )


def test_a_process_that_died_after_it_had_asked_is_not_asked_for_again(
    days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    days.add_instance()
    made = days.make()
    days.begin_at(DUE)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(PolicyRunner, "_was_asked", die)
        with pytest.raises(KeyboardInterrupt):
            days.scheduler.round()
    assert days.states(made) == ["waiting"]
    days.clock.advance(minutes=10)
    days.announce()
    days.round()
    assert days.states(made) == ["done"]
    assert len(days.cloud.ledger.jobs()) == 1


def test_a_policy_that_changed_while_it_was_planned_is_planned_anew(
    days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    days.add_instance()
    made = days.make()
    days.begin_at(DUE)
    before = Policies.plan

    def change_first(self: Policies, *arguments: Any) -> bool:
        monkeypatch.setattr(Policies, "plan", before)
        days.ask("PATCH", f"{POLICIES}/{made['id']}", {"policy": {"enabled": False}})
        return before(self, *arguments)

    monkeypatch.setattr(Policies, "plan", change_first)
    days.scheduler.round()
    assert days.runs(made) == []


def test_jitter_spreads_the_begin_and_is_the_same_each_day(days: Days) -> None:
    for _ in range(3):
        days.add_instance()
    made = days.make(jitter_s=3600)
    for number in range(2):
        days.begin_at(DUE + dt.timedelta(days=number))
        days.pass_time(hours=2, step=dt.timedelta(minutes=15))
    begins: dict[str, set[str]] = {}
    for run in days.runs(made):
        assert run["state"] == "done"
        begins.setdefault(run["instance_uuid"], set()).add(run["start_at"].partition("T")[2])
    assert [len(one) for one in begins.values()] == [1, 1, 1]
    assert len(set.union(*begins.values())) > 1


def test_every_so_often_an_increment_is_a_whole_one(days: Days) -> None:
    days.add_instance()
    days.make(incremental=True, full_every=3)
    days.nights(7)
    assert days.chain_lengths == [0, 1, 2, 0, 1, 2, 0]


def test_runs_have_pages_and_filters(days: Days) -> None:
    record, other = days.add_instance(), days.add_instance()
    made = days.make()
    days.nights(3)
    whole = days.runs(made)
    assert len(whole) == 6
    found: list[Any] = []
    url: str | None = f"{POLICIES}/{made['id']}/runs?limit=4"
    while url is not None:
        body = days.ask("GET", url).json
        found += body["runs"]
        link = body.get("runs_links", [{"href": None}])[0]["href"]
        url = link and link.removeprefix("http://falconframework.org")
    assert found == whole
    assert len(days.runs(made, f"?instance_uuid={other.uuid}")) == 3
    assert days.runs(made, "?state=skipped&state=error") == []
    assert {run["instance_uuid"] for run in whole} == {record.uuid, other.uuid}
    theirs = days.make()
    marker = days.ask("GET", f"{POLICIES}/{theirs['id']}/runs?marker={whole[0]['id']}")
    assert marker.status_code == 400


def test_a_history_ends_but_not_while_its_backup_stands(days: Days) -> None:
    days.add_instance()
    made = days.make(retention={"last": 2})
    days.nights(5)
    days.ask("PATCH", f"{POLICIES}/{made['id']}", {"policy": {"enabled": False}})
    assert days.states(made) == ["done"] * 5
    days.clock.advance(days=91)
    days.scheduler.round()
    assert days.states(made) == ["done"] * 2


def test_a_backup_that_cannot_be_verified_takes_no_others_place(
    days: Days, another: Callable[..., Cloud]
) -> None:
    """What tries it is a job of its own; here a snapshot plays its part."""
    record = days.add_instance()
    days.cloud = another(verify=lambda _caller, job: played(days.cloud, job.instance_uuid))
    days.scheduler = days.cloud.policies.scheduler(5.0)
    made = days.make(verify=True, retention={"last": 1})
    ends = (JobState.DONE, JobState.DONE, JobState.ERROR, JobState.DONE)
    for number, state in enumerate(ends):
        days.begin_at(DUE + dt.timedelta(days=number))
        days.scheduler.round()
        days.finish_all()
        days.scheduler.round()
        assert days.states(made)[0] == "verifying"
        (job,) = days.cloud.ledger.open_jobs()
        days.finish(job, state=state, reason="it does not boot", reason_code="verify_failed")
        days.scheduler.round()
    _, failed, *_ = days.runs(made)
    assert (failed["state"], failed["reason_code"]) == ("error", "verify_failed")
    assert "it does not boot" in failed["reason"]
    backups = days.ask("GET", f"/v1/jobs?policy_id={made['id']}").json["jobs"]
    gone = [job["removed_at"] is not None for job in backups]
    assert gone == [False, False, True, True], "the one that failed neither removes nor counts"
    reply = days.ask("GET", f"{POLICIES}/{made['id']}/retention")
    assert [one["fate"] for one in reply.json["backups"]] == ["kept", "not_counted"]
    assert record.uuid == backups[0]["instance_uuid"]


def test_verifying_is_tried_again_and_without_it_nothing_goes(
    days: Days, another: Callable[..., Cloud]
) -> None:
    def unavailable(_caller: Any, _job: Any) -> Any:
        raise AgentUnavailable("no host can boot it now")

    days.add_instance()
    days.cloud = another(verify=unavailable)
    days.scheduler = days.cloud.policies.scheduler(5.0)
    made = days.make(verify=True, retention={"last": 1})
    days.nights(1)
    assert days.states(made) == ["asked"]
    days.nights(1)
    assert days.states(made) == ["asked", "error"]
    assert days.runs(made)[-1]["reason_code"] == "agent_unavailable"
    assert days.cloud.images.deleted == []

    days.cloud = another()
    days.scheduler = days.cloud.policies.scheduler(5.0)
    days.nights(1)
    assert {run["reason_code"] for run in days.runs(made)[:2]} == {"cannot_verify"}
    assert days.cloud.images.deleted == []


def played(cloud: Cloud, instance_uuid: str) -> Any:
    image_id = cloud.snapshot(instance_uuid).json["image_id"]
    (job,) = [job for job in Ledger(cloud.database).jobs() if job.image_id == image_id]
    return job


def test_however_many_runs_wait_none_is_asked_for_twice(days: Days) -> None:
    record, made = days.add_instance(), days.make()
    assert days.ask("POST", f"{POLICIES}/{made['id']}/run").status_code == 202
    runs = days.cloud.policies.book.runs
    (waiting,) = runs.page(RunQuery(policy_id=made["id"]))
    runs.add(
        dataclasses.replace(
            waiting,
            id=str(uuid.uuid4()),
            instance_uuid=str(uuid.uuid4()),
            due_at=waiting.due_at + dt.timedelta(seconds=1),
        )
        for _ in range(1000)
    )
    again = days.ask("POST", f"{POLICIES}/{made['id']}/run")
    assert (waiting.instance_uuid, again.status_code) == (record.uuid, 409)


def test_nothing_is_due_before_its_time(days: Days) -> None:
    days.add_instance()
    made = days.make(schedule={"cron": "0 0 1 * *", "time_zone": "Pacific/Auckland"})
    assert made["next_due_at"] == "2026-03-31T11:00:00Z"
    days.begin_at(BEGIN + dt.timedelta(days=20))
    days.round()
    assert days.runs(made) == []


def test_a_clock_that_is_put_back_has_nothing_run_twice(days: Days) -> None:
    days.add_instance()
    made = days.make()
    days.nights(1)
    days.clock.now = DUE - dt.timedelta(hours=1)
    url = f"{POLICIES}/{made['id']}"
    for enabled in (False, True):
        days.ask("PATCH", url, {"policy": {"enabled": enabled}})
    days.add_instance()
    days.begin_at(DUE)
    days.round()
    assert days.states(made) == ["done", "done"], "one of each instance"
    assert days.ask("GET", url).json["policy"]["next_due_at"] == "2026-03-04T02:00:00Z"


def test_asking_again_for_what_waits_already_is_409(days: Days) -> None:
    first = days.add_instance()
    made = days.make()
    url = f"{POLICIES}/{made['id']}/run"
    assert days.ask("POST", url).status_code == 202
    assert days.ask("POST", url).status_code == 409
    second = days.add_instance()
    days.clock.advance(seconds=1)
    (run,) = days.ask("POST", url).json["runs"]
    assert run["instance_uuid"] == second.uuid
    assert first.uuid != second.uuid
    days.round()
    days.clock.advance(seconds=1)
    assert len(days.ask("POST", url).json["runs"]) == 2


def test_the_scheduler_looks_by_itself_until_it_is_told_to_stop(
    days: Days, another: Callable[..., Cloud]
) -> None:
    """One of two that run; which of them does not matter."""
    days.add_instance()
    made = days.make()
    days.begin_at(DUE)
    schedulers = [another().policies.scheduler(0.05) for _ in range(2)]
    for scheduler in schedulers:
        scheduler.start()
    try:
        cast = days.cloud.casts.next()
        assert all(scheduler.alive() for scheduler in schedulers)
    finally:
        for scheduler in schedulers:
            scheduler.stop(time.monotonic() + 10)
    assert not any(scheduler.alive() for scheduler in schedulers)
    (run,) = days.runs(made)
    assert (run["state"], run["job_id"]) == ("asked", cast["job_id"])
