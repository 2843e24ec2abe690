# SPDX-License-Identifier: Apache-2.0
"""What becomes of a policy's runs: asked for once, tried again, skipped with a reason."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from api_service.policy_parts import PolicyLimits
from api_service.policy_runner import PolicyRunner
from api_service.store.ledger import Ledger
from api_service.store.policies import Policies
from common.glance import ImageServiceUnavailable
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


def at(days: Days, moment: dt.datetime) -> None:
    """Let it be that time, with a heartbeat."""
    days.clock.now = moment
    days.announce()


def test_a_run_is_asked_for_when_it_is_due_in_the_name_of_the_policys_maker(days: Days) -> None:
    record, made = days.add_instance(), days.make(freeze="auto")
    at(days, DUE - dt.timedelta(seconds=1))
    days.scheduler.round()
    assert days.runs(made) == []
    at(days, DUE + dt.timedelta(seconds=3))
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
    at(days, DUE)
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
    at(days, DUE)

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
    at(days, DUE)
    before = Policies.plan

    def change_first(self: Policies, *arguments: Any) -> bool:
        monkeypatch.setattr(Policies, "plan", before)
        days.ask("PATCH", f"{POLICIES}/{made['id']}", {"policy": {"enabled": False}})
        return before(self, *arguments)

    monkeypatch.setattr(Policies, "plan", change_first)
    days.scheduler.round()
    assert days.runs(made) == []


def test_a_busy_instance_is_asked_for_again_until_the_policy_is_due_next(days: Days) -> None:
    record, made = days.add_instance(), days.make()
    assert days.cloud.snapshot(record.uuid).status_code == 202
    at(days, DUE)
    for _ in range(100):
        days.scheduler.round()
        days.clock.advance(minutes=1)
        days.announce()
    (run,) = days.runs(made)
    assert (run["state"], run["reason_code"]) == ("waiting", "conflict")
    assert "task_state image_snapshot_pending" in run["reason"]
    assert 10 < run["attempts"] < 40, "less and less often"

    days.finish_all()
    days.clock.advance(minutes=5)
    days.announce()
    days.round()
    assert days.states(made) == ["done"]

    days.cloud.snapshot(record.uuid)
    at(days, DUE + dt.timedelta(days=1))
    days.scheduler.round()
    at(days, DUE + dt.timedelta(days=2))
    days.scheduler.round()
    newest, skipped, _ = days.runs(made)
    assert (skipped["state"], skipped["reason_code"]) == ("skipped", "conflict")
    assert "given up" in skipped["reason"]
    assert newest["state"] == "waiting"


def test_an_agent_that_is_down_is_recorded_and_tried_again(days: Days) -> None:
    days.add_instance()
    made = days.make()
    days.clock.now = DUE
    days.scheduler.round()
    (run,) = days.runs(made)
    assert (run["state"], run["reason_code"]) == ("waiting", "agent_unavailable")
    days.clock.now = DUE + dt.timedelta(days=1)
    days.scheduler.round()
    waiting, failed = days.runs(made)
    assert (failed["state"], failed["reason_code"]) == ("error", "agent_unavailable")
    assert waiting["state"] == "waiting"
    days.clock.advance(minutes=6)
    days.announce()
    days.round()
    assert days.states(made) == ["done", "error"]


def test_a_glance_that_is_away_is_tried_again_with_another_job(days: Days) -> None:
    days.add_instance()
    made = days.make()
    at(days, DUE)
    days.cloud.images.failure = ImageServiceUnavailable("the image service does not answer")
    days.scheduler.round()
    (run,) = days.runs(made)
    assert (run["state"], run["reason_code"]) == ("waiting", "image_service_unavailable")
    days.cloud.images.failure = None
    days.clock.advance(minutes=1)
    days.announce()
    days.round()
    assert days.states(made) == ["done"]
    assert sorted(job.state for job in days.cloud.ledger.jobs()) == ["done", "error"]


def test_a_backup_that_fails_ends_its_run_with_the_reason_and_removes_nothing(
    days: Days,
) -> None:
    days.add_instance()
    made = days.make(retention={"last": 1})
    days.nights(1)
    at(days, DUE + dt.timedelta(days=1))
    days.scheduler.round()
    (job,) = days.cloud.ledger.open_jobs()
    failed = {"state": JobState.ERROR, "reason": "no room", "reason_code": "no_room"}
    days.finish(job, **failed)
    days.scheduler.round()
    newest, first = days.runs(made)
    assert (newest["state"], newest["reason"]) == ("error", "no room")
    assert first["state"] == "done"
    assert days.cloud.images.deleted == []


@pytest.mark.parametrize(("missed_runs", "states"), [("catch_up", ["done"]), ("skip", ["skipped"])])
def test_runs_that_were_missed_are_caught_up_with_once_or_skipped(
    days: Days, missed_runs: str, states: list[str]
) -> None:
    days.add_instance()
    made = days.make(missed_runs=missed_runs)
    at(days, DUE + dt.timedelta(days=3, hours=7))
    days.round()
    (run,) = days.runs(made)
    assert [run["state"]] == states
    assert run["due_at"] == "2026-03-06T02:00:00Z", "the last of them"
    assert run["reason_code"] == (None if missed_runs == "catch_up" else "missed")
    days.nights(1)
    assert days.states(made) == ["done", *states]


def test_a_round_that_is_a_little_late_misses_nothing(days: Days) -> None:
    days.add_instance()
    made = days.make(missed_runs="skip")
    at(days, DUE + dt.timedelta(seconds=299))
    days.round()
    assert days.states(made) == ["done"]


def test_a_host_has_only_so_many_backups_of_policies_at_a_time(days: Days) -> None:
    for _ in range(5):
        days.add_instance()
    made = days.make()
    at(days, DUE)
    for at_work, left in ((2, 3), (2, 1), (1, 0)):
        days.scheduler.round()
        assert len(days.cloud.ledger.open_jobs()) == at_work
        waiting = [run for run in days.runs(made) if run["state"] == "waiting"]
        assert [run["reason_code"] for run in waiting] == ["host_busy"] * left
        days.finish_all()
    days.scheduler.round()
    assert days.states(made) == ["done"] * 5


def test_jitter_spreads_the_begin_and_is_the_same_each_day(days: Days) -> None:
    for _ in range(3):
        days.add_instance()
    made = days.make(jitter_s=3600)
    for number in range(2):
        at(days, DUE + dt.timedelta(days=number))
        days.pass_time(hours=2, step=dt.timedelta(minutes=15))
    begins: dict[str, set[str]] = {}
    for run in days.runs(made):
        assert run["state"] == "done"
        begins.setdefault(run["instance_uuid"], set()).add(run["start_at"].partition("T")[2])
    assert [len(one) for one in begins.values()] == [1, 1, 1]
    assert len(set.union(*begins.values())) > 1


def test_a_policy_that_is_disabled_or_deleted_begins_nothing_more(days: Days) -> None:
    days.add_instance()
    disabled, deleted = days.make(jitter_s=3600), days.make(jitter_s=3600)
    at(days, DUE)
    days.scheduler.round()
    started = len(days.cloud.ledger.jobs())
    days.ask("PATCH", f"{POLICIES}/{disabled['id']}", {"policy": {"enabled": False}})
    days.ask("DELETE", f"{POLICIES}/{deleted['id']}")
    days.pass_time(hours=2)
    days.nights(1)
    assert len(days.cloud.ledger.jobs()) == started
    assert days.states(disabled) == ["skipped"]
    assert days.runs(disabled)[0]["reason_code"] == "policy_disabled"

    days.ask("POST", f"{POLICIES}/{disabled['id']}/run")
    days.round()
    assert days.states(disabled) == ["done", "skipped"], "unless somebody asks"


def test_an_instance_that_is_deleted_meanwhile_is_skipped(days: Days) -> None:
    days.add_instance()
    made = days.make(jitter_s=3600)
    at(days, DUE)
    days.scheduler.round()
    days.instances.clear()
    days.pass_time(hours=2)
    (run,) = days.runs(made)
    assert (run["state"], run["reason_code"]) == ("skipped", "instance_not_found")


def test_who_may_have_no_backups_has_none_by_a_policy_either(
    days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api_service import policies

    days.add_instance()
    made = days.make()
    before = policies.Authorizer.allows

    def refuse(self: Any, caller: Any, rule: str, *more: Any) -> bool:
        return "os-create-backup" not in rule and before(self, caller, rule, *more)

    monkeypatch.setattr(policies.Authorizer, "allows", refuse)
    at(days, DUE)
    days.scheduler.round()
    (run,) = days.runs(made)
    assert (run["state"], run["reason_code"]) == ("error", "forbidden")
    assert days.cloud.ledger.jobs() == []


def test_every_so_often_an_increment_is_a_whole_one(days: Days) -> None:
    days.add_instance()
    days.make(incremental=True, full_every=3)
    days.nights(7)
    assert days.chain_lengths == [0, 1, 2, 0, 1, 2, 0]


def test_a_defect_met_at_one_policy_does_not_keep_the_others_waiting(
    days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    days.add_instance()
    broken, fine = days.make(name="broken"), days.make(name="fine")
    before = Policies.plan

    def fail(self: Policies, policy: Any, *more: Any) -> bool:
        if policy.id == broken["id"]:
            raise RuntimeError("a defect")
        return before(self, policy, *more)

    monkeypatch.setattr(Policies, "plan", fail)
    at(days, DUE)
    days.round()
    assert (days.states(broken), days.states(fine)) == ([], ["done"])


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
    for number, state in enumerate((JobState.DONE, JobState.DONE, JobState.ERROR)):
        at(days, DUE + dt.timedelta(days=number))
        days.scheduler.round()
        days.finish_all()
        days.scheduler.round()
        assert days.states(made)[0] == "verifying"
        (job,) = days.cloud.ledger.open_jobs()
        days.finish(job, state=state, reason="it does not boot", reason_code="verify_failed")
        days.scheduler.round()
    failed, *_ = days.runs(made)
    assert (failed["state"], failed["reason_code"]) == ("error", "verify_failed")
    assert "it does not boot" in failed["reason"]
    backups = days.ask("GET", f"/v1/jobs?policy_id={made['id']}").json["jobs"]
    gone = [job["removed_at"] is not None for job in backups]
    assert gone == [False, False, True], "only the second, which is verified, removed one"
    assert record.uuid == backups[0]["instance_uuid"]


def played(cloud: Cloud, instance_uuid: str) -> Any:
    image_id = cloud.snapshot(instance_uuid).json["image_id"]
    (job,) = [job for job in Ledger(cloud.database).jobs() if job.image_id == image_id]
    return job


def test_nothing_is_due_before_its_time(days: Days) -> None:
    days.add_instance()
    made = days.make(schedule={"cron": "0 0 1 * *", "time_zone": "Pacific/Auckland"})
    assert made["next_due_at"] == "2026-03-31T11:00:00Z"
    at(days, BEGIN + dt.timedelta(days=20))
    days.round()
    assert days.runs(made) == []
