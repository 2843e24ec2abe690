# SPDX-License-Identifier: Apache-2.0
"""Policies that have their backups tried: what is tried again, and what never was tried."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest

from api_service.placement import Placement
from api_service.store.lifecycles import Lifecycles
from api_service.verifications import Verifications
from common.states import JobKind, JobState
from compute_agent import trial
from tests.api.clouds import ACCEPT_TIMEOUT_S, Cloud
from tests.api.policy_days import POLICIES, Clock, Days

DUE = dt.datetime(2026, 3, 3, 2, tzinfo=dt.UTC)


@pytest.fixture
def days(database_url: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Days]:
    verifications = Verifications(
        lifecycles=Lifecycles(cloud.database),
        placement=Placement(agents=cloud.agents, inventory=cloud.inventory),
        images=cloud.images,
        accept_timeout_s=ACCEPT_TIMEOUT_S,
    )
    verifying = Cloud(
        database_url,
        cloud.images,
        cloud.casts,
        verify=lambda caller, job: verifications.request(caller, job.image_id),
    )
    days = Days(verifying, Clock(monkeypatch))
    days.add_instance()
    yield days
    verifying.database.engine.dispose()


def backed_up(days: Days, **fields: Any) -> dict[str, Any]:
    """Make a policy and its first backup, which is to be tried."""
    made = days.make(verify=True, **fields)
    days.begin_at(DUE)
    days.round()
    assert days.states(made) == ["verifying"]
    return made


def end_trial(days: Days, reason_code: str) -> None:
    """Let the trial at work fail, and the scheduler see it."""
    (job,) = days.cloud.ledger.open_jobs()
    assert job.kind is JobKind.VERIFY
    failed = {"state": JobState.ERROR, "reason": "it was in vain", "reason_code": reason_code}
    days.finish(job, **failed)
    days.scheduler.round()


def wait(days: Days, minutes: int) -> None:
    days.clock.advance(minutes=minutes)
    days.announce()
    days.scheduler.round()


@pytest.mark.parametrize(
    "passing",
    ["no_room", "interrupted", "agent_unavailable", "image_service_unavailable", "deadline_passed"],
)
def test_what_passes_is_waited_for_and_the_backup_tried_again(days: Days, passing: str) -> None:
    made = backed_up(days, retention={"last": 1})
    for minutes in (5, 10):
        end_trial(days, passing)
        (run,) = days.runs(made)
        assert (run["state"], run["reason_code"]) == ("asked", passing)
        wait(days, minutes - 1)
        assert days.cloud.ledger.open_jobs() == [], "not yet"
        wait(days, 1)
        assert days.states(made) == ["verifying"]
    days.round()
    (run,) = days.runs(made)
    assert (run["state"], run["reason"], run["reason_code"]) == ("done", None, None)


def test_a_backup_is_tried_only_so_often(days: Days, caplog: pytest.LogCaptureFixture) -> None:
    made = backed_up(days)
    for minutes in (5, 10, 0):
        end_trial(days, "no_room")
        wait(days, minutes)
    (run,) = days.runs(made)
    assert (run["state"], run["reason_code"]) == ("error", "no_room")
    assert "it was in vain" in run["reason"]
    wait(days, 24 * 60 - 30)
    assert days.cloud.ledger.open_jobs() == []
    assert sum("tried again" in one.message for one in caplog.records) == 2


PROOFS = [*(one.code for one in trial._PROOFS), "cancelled", "image_not_found"]


@pytest.mark.parametrize("final", PROOFS)
def test_what_says_enough_of_the_backup_is_not_asked_twice(days: Days, final: str) -> None:
    made = backed_up(days)
    end_trial(days, final)
    wait(days, 60)
    (run,) = days.runs(made)
    assert (run["state"], run["reason_code"]) == ("error", final)
    assert days.cloud.ledger.open_jobs() == []


def test_a_policy_that_wants_no_trial_any_more_goes_on_without(days: Days) -> None:
    made = backed_up(days, retention={"last": 1})
    end_trial(days, "no_room")
    days.ask("PATCH", f"{POLICIES}/{made['id']}", {"policy": {"verify": False}})
    wait(days, 5)
    (run,) = days.runs(made)
    assert (run["state"], run["reason"]) == ("done", None)


def fates(days: Days, made: dict[str, Any]) -> list[str]:
    reply = days.ask("GET", f"{POLICIES}/{made['id']}/retention")
    assert reply.status_code == 200, reply.text
    return [one["fate"] for one in reply.json["backups"]]


def test_backups_from_before_verification_age_but_replace_no_verified_one(days: Days) -> None:
    made = days.make(retention={"last": 2})
    url = f"{POLICIES}/{made['id']}"

    def night(*, verify: bool) -> None:
        days.ask("PATCH", url, {"policy": {"verify": verify}})
        days.nights(1)
        days.round()

    night(verify=True)
    night(verify=False)
    night(verify=False)
    assert len(fates(days, made)) == 2, "while nobody wants to know, all count alike"

    days.ask("PATCH", url, {"policy": {"verify": True, "retention": {"last": 3}}})
    night(verify=True)
    night(verify=False)
    days.ask("PATCH", url, {"policy": {"verify": True, "retention": {"last": 1}}})
    assert fates(days, made) == ["kept", "kept", "deleted"]
    night(verify=True)
    assert fates(days, made) == ["kept"], "a verified one takes any other's place"
