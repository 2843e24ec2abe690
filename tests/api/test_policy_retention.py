# SPDX-License-Identifier: Apache-2.0
"""What a policy's retention removes, leaves alone, and would remove."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from common.errors import StillframeError
from common.glance import ImageRefused, ImageServiceUnavailable
from common.states import JobState
from tests.api.clouds import Cloud
from tests.api.policy_days import POLICIES, Clock, Days

DUE = dt.datetime(2026, 3, 3, 2, tzinfo=dt.UTC)


@pytest.fixture
def days(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Days:
    return Days(cloud, Clock(monkeypatch))


def standing(days: Days) -> list[str]:
    """Return the names of the images that stand, oldest first."""
    records = days.cloud.images.records
    return [record["name"].split("-")[-1][:8] for record in records.values()]


def outlook(days: Days, policy: dict[str, Any], query: str = "") -> list[tuple[str, list[str]]]:
    reply = days.ask("GET", f"{POLICIES}/{policy['id']}/retention{query}")
    assert reply.status_code == 200, reply.text
    return [(one["fate"], one["rules"]) for one in reply.json["backups"]]


def test_the_older_ones_go_when_a_new_one_is_done(days: Days) -> None:
    days.add_instance()
    days.make(retention={"last": 2})
    days.nights(5)
    assert standing(days) == ["20260306", "20260307"]


def test_each_instance_is_kept_to_it_by_itself(days: Days) -> None:
    days.add_instance()
    days.add_instance()
    days.make(retention={"last": 1})
    days.nights(3)
    assert standing(days) == ["20260305"] * 2


def test_only_the_policys_own_backups_count_and_go(days: Days) -> None:
    record = days.add_instance()
    days.make(retention={"last": 1})
    days.make(name="weekly", retention={"last": 3})
    days.cloud.snapshot(record.uuid, name="by-hand-20200101")
    days.finish_all()
    body = {"createBackup": {"name": "b-20200102", "backup_type": "nightly", "rotation": 5}}
    assert days.cloud.act(record.uuid, body).status_code == 202
    days.finish_all()
    days.nights(4)
    assert sorted(standing(days)) == [
        "20200101",
        "20200102",
        "20260304",
        "20260305",
        "20260306",
        "20260306",
    ]


def test_what_a_user_wrote_on_an_image_changes_nothing(days: Days) -> None:
    days.add_instance()
    days.make(retention={"last": 1})
    days.nights(1)
    (image,) = days.cloud.images.records.values()
    image.update(image_type="snapshot", backup_type="precious", instance_uuid="x", owner="y")
    days.nights(1)
    assert standing(days) == ["20260304"]


def test_a_protected_image_stays_and_others_go(days: Days) -> None:
    days.add_instance()
    made = days.make(retention={"last": 1})
    days.nights(1)
    (image,) = days.cloud.images.records.values()
    image["protected"] = True
    days.nights(2)
    assert standing(days) == ["20260303", "20260305"]
    assert outlook(days, made) == [("kept", ["last"]), ("protected", [])]


def test_an_image_that_is_not_active_takes_no_others_place(days: Days) -> None:
    days.add_instance()
    made = days.make(retention={"last": 2})
    days.nights(2)
    newest = list(days.cloud.images.records.values())[-1]
    newest["status"] = "deactivated"
    days.nights(1)
    assert standing(days) == ["20260303", "20260304", "20260305"]
    assert [fate for fate, _ in outlook(days, made)] == ["kept", "kept", "not_counted"]


def test_an_image_that_somebody_deleted_is_no_trouble(days: Days) -> None:
    days.add_instance()
    made = days.make(retention={"last": 2})
    days.nights(2)
    days.cloud.images.records.popitem()
    assert len(outlook(days, made)) == 1
    days.nights(1)
    assert standing(days) == ["20260303", "20260305"]
    jobs = days.ask("GET", f"/v1/jobs?policy_id={made['id']}").json["jobs"]
    assert [job["removed_at"] is None for job in jobs] == [True, False, True]


def test_what_a_kept_increment_lies_on_stays_until_that_goes(days: Days) -> None:
    days.add_instance()
    made = days.make(incremental=True, full_every=3, retention={"last": 1})
    for stands in (
        ["20260303"],
        ["20260303", "20260304"],
        ["20260303", "20260304", "20260305"],
        ["20260306"],
        ["20260306", "20260307"],
    ):
        days.nights(1)
        assert standing(days) == stands
    assert outlook(days, made) == [("kept", ["last"]), ("kept", ["parent"])]


def test_what_a_users_own_increment_lies_on_stays(days: Days) -> None:
    record = days.add_instance()
    made = days.make(retention={"last": 1})
    days.nights(1)
    body = {"name": "mine-20260303i", "metadata": {"stillframe:incremental": "true"}}
    assert days.cloud.act(record.uuid, {"createImage": body}).status_code == 202
    days.finish_all()
    days.nights(2)
    assert standing(days) == ["20260303", "20260303", "20260305"]
    assert outlook(days, made) == [("kept", ["last"]), ("kept", ["parent"])]


def test_nothing_goes_while_glance_is_away_and_the_rest_later(days: Days) -> None:
    days.add_instance()
    made = days.make(retention={"last": 1})
    days.nights(1)
    days.begin_at(DUE + dt.timedelta(days=1))
    days.scheduler.round()
    days.finish_all()
    days.cloud.images.failure = ImageServiceUnavailable("the image service does not answer")
    days.scheduler.round()
    assert days.states(made) == ["pruning", "done"]
    assert len(standing(days)) == 2
    reply = days.ask("GET", f"{POLICIES}/{made['id']}/retention")
    assert reply.status_code == 503
    days.cloud.images.failure = None
    days.clock.advance(minutes=2)
    days.scheduler.round()
    assert days.states(made) == ["done", "done"]
    assert standing(days) == ["20260304"]


@pytest.mark.parametrize(
    "error", [ImageServiceUnavailable("away"), ImageRefused("no")], ids=["away", "refuses"]
)
def test_what_cannot_be_removed_in_a_day_is_left_to_the_next_backup(
    days: Days, error: StillframeError
) -> None:
    days.add_instance()
    made = days.make(retention={"last": 1})
    days.nights(1)
    days.begin_at(DUE + dt.timedelta(days=1))
    days.scheduler.round()
    days.finish_all()
    days.ask("PATCH", f"{POLICIES}/{made['id']}", {"policy": {"enabled": False}})
    days.cloud.images.failure = error
    days.scheduler.round()
    days.clock.advance(days=1, minutes=2)
    days.scheduler.round()
    assert days.states(made) == ["done", "done"]
    assert len(standing(days)) == 2


def test_a_backup_of_what_is_removed_meanwhile_waits_for_the_increment(days: Days) -> None:
    """An increment that is being made may come to lie on any earlier one."""
    record = days.add_instance()
    made = days.make(retention={"last": 1})
    days.nights(1)
    days.begin_at(DUE + dt.timedelta(days=1))
    days.scheduler.round()
    days.finish_all()
    body = {"name": "mine-20260304i", "metadata": {"stillframe:incremental": "true"}}
    assert days.cloud.act(record.uuid, {"createImage": body}).status_code == 202
    days.scheduler.round()
    assert days.states(made)[0] == "pruning"
    (job,) = days.cloud.ledger.open_jobs()
    days.finish(job, state=JobState.ERROR, reason="x", reason_code="x")
    days.clock.advance(minutes=2)
    days.scheduler.round()
    assert days.states(made)[0] == "done"
    assert standing(days)[0] == "20260304"


def test_a_dry_run_says_what_another_retention_would_do_and_does_nothing(days: Days) -> None:
    days.add_instance()
    made = days.make()
    days.nights(9)
    assert outlook(days, made) == [("kept", ["everything"])] * 9
    assert outlook(days, made, "?last=1&weekly=2") == [
        ("kept", ["last", "weekly"]),
        *[("deleted", [])] * 2,
        ("kept", ["weekly"]),
        *[("deleted", [])] * 5,
    ]
    assert outlook(days, made, "?daily=3") == [("kept", ["daily"])] * 3 + [("deleted", [])] * 6
    assert len(standing(days)) == 9
    url = f"{POLICIES}/{made['id']}/retention"
    for query, named in (("?last=0", "retention"), ("?often=1", "often"), ("?last=x", "last")):
        reply = days.ask("GET", url + query)
        assert reply.status_code == 400
        assert named in reply.text
    body = days.ask("GET", f"{url}?daily=3&last=0").json
    assert body["retention"] == {"daily": 3}


def test_a_run_that_was_caught_up_counts_as_of_when_it_was_made(days: Days) -> None:
    """Its data are of that day, not of the one that it was due on."""
    days.add_instance()
    made = days.make(retention={"daily": 5})
    days.nights(1)
    days.begin_at(DUE + dt.timedelta(days=3, hours=20))
    days.round()
    days.nights(1)
    backups = days.ask("GET", f"{POLICIES}/{made['id']}/retention").json["backups"]
    assert [one["at"] for one in backups] == [
        "2026-03-07T02:00:00Z",
        "2026-03-06T22:00:00Z",
        "2026-03-03T02:00:00Z",
    ]
    assert [one["fate"] for one in backups] == ["kept"] * 3
