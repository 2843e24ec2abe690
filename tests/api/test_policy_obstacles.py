# SPDX-License-Identifier: Apache-2.0
"""What is in the way of a policy's runs, and what becomes of them then."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from api_service.store.policies import Policies
from common.glance import ImageServiceUnavailable
from common.states import JobState
from tests.api.clouds import Cloud
from tests.api.policy_days import POLICIES, Clock, Days

DUE = dt.datetime(2026, 3, 3, 2, tzinfo=dt.UTC)


@pytest.fixture
def days(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Days:
    return Days(cloud, Clock(monkeypatch))


def test_a_busy_instance_is_asked_for_again_until_the_policy_is_due_next(days: Days) -> None:
    record, made = days.add_instance(), days.make()
    assert days.cloud.snapshot(record.uuid).status_code == 202
    days.begin_at(DUE)
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
    days.begin_at(DUE + dt.timedelta(days=1))
    days.scheduler.round()
    days.begin_at(DUE + dt.timedelta(days=2))
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
    days.begin_at(DUE)
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
    days.begin_at(DUE + dt.timedelta(days=1))
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
    days.begin_at(DUE + dt.timedelta(days=3, hours=7))
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
    days.begin_at(DUE + dt.timedelta(seconds=299))
    days.round()
    assert days.states(made) == ["done"]


def test_a_host_has_only_so_many_backups_of_policies_at_a_time(days: Days) -> None:
    for _ in range(5):
        days.add_instance()
    made = days.make()
    days.begin_at(DUE)
    for at_work, left in ((2, 3), (2, 1), (1, 0)):
        days.scheduler.round()
        assert len(days.cloud.ledger.open_jobs()) == at_work
        waiting = [run for run in days.runs(made) if run["state"] == "waiting"]
        assert [run["reason_code"] for run in waiting] == ["host_busy"] * left
        days.finish_all()
    days.scheduler.round()
    assert days.states(made) == ["done"] * 5


def test_a_policy_that_is_disabled_or_deleted_begins_nothing_more(days: Days) -> None:
    days.add_instance()
    disabled, deleted = days.make(jitter_s=3600), days.make(jitter_s=3600)
    days.begin_at(DUE)
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
    days.begin_at(DUE)
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
    days.begin_at(DUE)
    days.scheduler.round()
    (run,) = days.runs(made)
    assert (run["state"], run["reason_code"]) == ("error", "forbidden")
    assert days.cloud.ledger.jobs() == []


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
    days.begin_at(DUE)
    days.round()
    assert (days.states(broken), days.states(fine)) == ([], ["done"])


def test_a_glance_that_hangs_is_waited_for_once_a_round(
    days: Days, caplog: pytest.LogCaptureFixture
) -> None:
    records = [days.add_instance() for _ in range(4)]
    policies = [
        days.make(instances={"ids": [one.uuid for one in meant]}, retention={"last": 1})
        for meant in (records[:2], records[2:])
    ]
    days.begin_at(DUE)
    days.scheduler.round()
    days.finish_all()
    days.cloud.images.failure = ImageServiceUnavailable("the image service hangs")
    for waits in range(1, 4):
        caplog.clear()
        days.scheduler.round()
        assert days.cloud.images.failed == waits
        told = [one for one in caplog.records if "for the next round" in one.message]
        assert len(told) == 1
    left = [run for made in policies for run in days.runs(made, "?state=waiting")]
    assert {run["reason_code"] for run in left} == {"image_service_unavailable"}

    days.cloud.images.failure = None
    for _ in range(8):
        days.clock.advance(minutes=1)
        days.announce()
        days.round()
    assert {state for made in policies for state in days.states(made)} == {"done"}


def test_runs_that_wait_for_glance_do_not_keep_the_next_round_from_others(days: Days) -> None:
    """One after the other would find Glance away, and each cost a round all that needs it."""
    days.add_instance(), days.add_instance()
    days.make(retention={"last": 1})
    days.begin_at(DUE)
    days.scheduler.round()
    days.finish_all()
    days.begin_at(DUE + dt.timedelta(days=1))
    days.announce()
    days.scheduler.round()
    days.finish_all()
    days.cloud.images.failure = ImageServiceUnavailable("the image service cannot delete")
    for _ in range(3):
        days.scheduler.round()
    assert days.cloud.images.failed == 1
