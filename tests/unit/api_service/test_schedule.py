# SPDX-License-Identifier: Apache-2.0
"""When a policy is due: across changed clocks, long silences, and whatever is given as cron."""

from __future__ import annotations

import datetime as dt
import itertools
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_service.errors import BadRequest
from api_service.schedule import Schedule, jitter

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = dt.timedelta(minutes=1)
#: The clocks of Berlin are put forward on 29 March 2026 and back on 25 October.
SPRING, AUTUMN = dt.date(2026, 3, 29), dt.date(2026, 10, 25)


def times(cron: str, day: dt.date, zone: str = "Europe/Berlin") -> list[str]:
    """Return the local times of a schedule on a day, with what they are ahead of UTC."""
    schedule, here = Schedule(cron=cron, time_zone=zone), ZoneInfo(zone)
    begin = dt.datetime.combine(day, dt.time(), here).astimezone(dt.UTC)
    end = dt.datetime.combine(day + dt.timedelta(days=1), dt.time(), here).astimezone(dt.UTC)
    found, at = [], begin - dt.timedelta(seconds=1)
    while (at := schedule.next_after(at)) is not None and at < end:
        found.append(f"{at.astimezone(here):%H:%M%z}")
    return found


@pytest.mark.parametrize(
    ("cron", "due"),
    [
        ("30 2 * * *", ["03:00+0200"]),
        ("0,30 2,3 * * *", ["03:00+0200", "03:30+0200"]),
        ("*/30 2 * * *", ["03:00+0200"]),
        (
            "0 */2 * * *",
            [
                f"{hour:02}:00{'+0100' if hour < 2 else '+0200'}"
                for hour in (0, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22)
            ],
        ),
    ],
)
def test_what_falls_into_the_lost_hour_is_due_once_at_its_end(cron: str, due: list[str]) -> None:
    assert times(cron, SPRING) == due


@pytest.mark.parametrize(
    ("cron", "due"),
    [
        ("30 2 * * *", ["02:30+0200"]),
        ("*/30 2 * * *", ["02:00+0200", "02:30+0200"]),
        ("0 1-4 * * *", ["01:00+0200", "02:00+0200", "03:00+0100", "04:00+0100"]),
    ],
)
def test_what_falls_into_the_hour_that_comes_twice_is_due_once(cron: str, due: list[str]) -> None:
    assert times(cron, AUTUMN) == due


def test_what_runs_every_hour_goes_by_the_hours_that_pass() -> None:
    assert len(times("0 * * * *", SPRING)) == 23
    assert len(times("0 * * * *", AUTUMN)) == 25
    assert len(times("*/15 * * * *", AUTUMN)) == 100


@pytest.mark.parametrize("cron", ["30 2 * * *", "*/20 */3 * * *", "7 * * * *", "0 0 1 * *"])
def test_from_any_minute_of_a_changed_day_the_next_lies_ahead(cron: str) -> None:
    schedule = Schedule(cron=cron, time_zone="Europe/Berlin")
    for day, minute in itertools.product((SPRING, AUTUMN), range(0, 6 * 60, 7)):
        start = dt.datetime.combine(day, dt.time(), BERLIN).astimezone(dt.UTC)
        at = start + minute * MINUTE
        found = schedule.next_after(at)
        assert found is not None
        assert found > at
        assert schedule.newest(at, found) == found, "and it is the first"
        assert schedule.newest(at + MINUTE / 60, found - MINUTE / 60) is None


def test_the_newest_of_a_long_silence_is_found_without_walking_through_it() -> None:
    schedule = Schedule(cron="* * * * *")
    since, until = (
        dt.datetime(1990, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC),
    )
    assert schedule.newest(since, until) == until
    rare = Schedule(cron="0 0 29 2 *")
    assert rare.newest(since, until) == dt.datetime(2024, 2, 29, tzinfo=dt.UTC)
    assert rare.newest(until, until + dt.timedelta(days=90)) is None


def test_what_never_comes_is_no_time() -> None:
    schedule = Schedule(cron="0 0 29 2 MON#5")
    found = schedule.next_after(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    assert found is None or found.day == 29


@pytest.mark.parametrize(
    ("cron", "zone", "named"),
    [
        ("0 0 31 2 *", "UTC", "schedule.cron"),
        ("61 * * * *", "UTC", "schedule.cron"),
        ("* * * *", "UTC", "five fields"),
        ("*/5 * * * * *", "UTC", "five fields"),
        ("@daily", "UTC", "five fields"),
        (f"{'9' * 5000} * * * *", "UTC", "schedule.cron"),
        ("0 1 * * *", "Europe/Berlinn", "schedule.time_zone"),
        ("0 1 * * *", "../../etc/passwd", "schedule.time_zone"),
        ("0 1 * * *", "", "schedule.time_zone"),
    ],
)
def test_what_is_no_schedule_is_refused_and_named(cron: str, zone: str, named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        Schedule(cron=cron, time_zone=zone)


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789*/,-#LW MONJAN", max_size=30))
def test_whatever_is_given_is_a_schedule_or_refused(cron: str) -> None:
    try:
        schedule = Schedule(cron=cron)
    except BadRequest:
        return
    schedule.next_after(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


def test_jitter_is_the_same_each_time_and_spread() -> None:
    found = [jitter("policy", f"instance-{number}", 600) for number in range(200)]
    assert found == [jitter("policy", f"instance-{number}", 600) for number in range(200)]
    assert all(dt.timedelta() <= one <= dt.timedelta(seconds=600) for one in found)
    assert len(set(found)) > 100
    assert jitter("policy", "instance", 0) == dt.timedelta()
