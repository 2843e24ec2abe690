# SPDX-License-Identifier: Apache-2.0
"""A month of a policy, night by night, with all that goes wrong in a month."""

from __future__ import annotations

import datetime as dt
from collections import Counter

import pytest

from common.reports import InstanceRecord
from tests.api.clouds import Cloud
from tests.api.policy_days import POLICIES, Clock, Days

#: The clocks of Berlin are put back on the 25th.
BEGIN = dt.datetime(2026, 9, 30, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def test_a_month_has_one_backup_of_each_night_and_keeps_what_it_should(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API is down for two nights and a half, an instance is busy for one, one is made late."""
    days = Days(cloud, Clock(monkeypatch, BEGIN))
    first = days.add_instance(name="db")
    made = days.make(
        schedule={"cron": "30 2 * * *", "time_zone": "Europe/Berlin"},
        retention={"daily": 7, "weekly": 3, "monthly": 2},
        jitter_s=1200,
        incremental=True,
        full_every=7,
    )
    second = live_through_it(days, first)
    runs = days.runs(made)
    assert Counter(run["due_at"] for run in runs if run["instance_uuid"] == first.uuid) == {
        f"{night:%Y-%m-%d}T{hour}:30:00Z": 1
        for night, hour in nights(dt.date(2026, 10, 1), dt.date(2026, 11, 1))
    }
    assert Counter(run["due_at"][:10] for run in runs if run["instance_uuid"] == second.uuid) == {
        f"{night:%Y-%m-%d}": 1 for night, _ in nights(dt.date(2026, 10, 10), dt.date(2026, 11, 1))
    }
    late = [run for run in runs if run["state"] != "done"]
    assert [(run["due_at"][:10], run["state"], run["instance_uuid"]) for run in late] == [
        ("2026-10-16", "skipped", first.uuid)
    ]
    kept = days.ask("GET", f"{POLICIES}/{made['id']}/retention").json["backups"]
    assert {one["fate"] for one in kept} == {"kept"}, "the rest is gone"
    for record in (first, second):
        by_rule = Counter(
            rule for one in kept if one["instance_uuid"] == record.uuid for rule in one["rules"]
        )
        assert (by_rule["daily"], by_rule["weekly"], by_rule["monthly"]) == (7, 3, 2)
    assert sorted(cloud.images.records) == sorted(
        [image_id for one in kept for image_id in one["image_ids"]] + by_hand(cloud)
    )


def live_through_it(days: Days, first: InstanceRecord) -> InstanceRecord:
    """Let it be November; return an instance that came on the ninth of October."""
    until(days, dt.datetime(2026, 10, 9, 12, tzinfo=dt.UTC))
    second = days.add_instance(name="web")
    until(days, dt.datetime(2026, 10, 10, 12, tzinfo=dt.UTC))

    days.clock.advance(days=2, hours=20)  # down: the nights of 11, 12 and 13 October
    until(days, dt.datetime(2026, 10, 15, 12, tzinfo=dt.UTC))

    days.cloud.snapshot(first.uuid)  # which its agent does not begin with for long
    while days.clock.now < dt.datetime(2026, 10, 17, 1, tzinfo=dt.UTC):
        days.clock.advance(minutes=30)
        days.announce()
        days.scheduler.round()
        for job in days.cloud.ledger.open_jobs():
            if job.instance_uuid != first.uuid:
                days.finish(job)
    days.finish_all()
    until(days, dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC))
    return second


def until(days: Days, end: dt.datetime) -> None:
    """Let time pass, with rounds around half past two in Berlin, summer or winter."""
    while days.clock.now < end:
        midnight = days.clock.now.replace(hour=0, minute=0)
        # At noon, and when the jitter of what is caught up with then is over.
        for minutes in (31, 55, 91, 115, 720, 741, 1471):
            at = midnight + dt.timedelta(minutes=minutes)
            if days.clock.now < at <= end:
                days.begin_at(at)
                days.round()


def nights(first: dt.date, last: dt.date) -> list[tuple[dt.date, str]]:
    """Return the nights that have a run, and its hour in UTC."""
    every = [first + number * DAY for number in range((last - first).days + 1)]
    missed = {dt.date(2026, 10, 11), dt.date(2026, 10, 12)}  # caught up with that of the 13th
    # On the 25th 02:30 comes twice: the first counts.
    return [
        (one, "00" if one <= dt.date(2026, 10, 25) else "01") for one in every if one not in missed
    ]


def by_hand(cloud: Cloud) -> list[str]:
    return [key for key, one in cloud.images.records.items() if one["name"] == "nightly"]
