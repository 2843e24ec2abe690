# SPDX-License-Identifier: Apache-2.0
"""What a retention keeps: examples that can be read, and what holds of any."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from api_service.retention import EVERYTHING, PARENT, Decision, decide
from api_service.store.policy_records import Backup, Proof, Retention

BEGIN = dt.datetime(2026, 1, 1, 3, tzinfo=dt.UTC)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


def backup(at: dt.datetime, name: str | None = None, *parents: str) -> Backup:
    """Return a backup of that time, whose image is called as it is."""
    called = name or at.isoformat()
    return Backup(
        job_id=called,
        instance_uuid="instance",
        image_ids=(called,),
        parent_ids=frozenset(parents),
        at=at,
    )


def kept(
    backups: Sequence[Backup], time_zone: str = "UTC", children: Sequence[Backup] = (), **rules: int
) -> dict[str, tuple[str, ...]]:
    """Return what stays, by the time (or name) of each, and by which rules."""
    decisions = decide(backups, Retention(**rules), time_zone, children)
    return {one.backup.job_id: one.rules for one in decisions if one.rules}


def days(count: int, first: dt.datetime = BEGIN) -> list[Backup]:
    return [backup(first + number * DAY) for number in range(count)]


def test_last_keeps_the_newest_whatever_their_times() -> None:
    hourly = [backup(BEGIN + number * HOUR) for number in range(5)]
    assert list(kept(hourly, last=2)) == [one.job_id for one in reversed(hourly[3:])]


def test_each_rule_keeps_the_newest_of_its_periods() -> None:
    found = kept(days(60), daily=3, weekly=2, monthly=2, yearly=2)
    # 1 March 2026 is a Sunday.
    assert found == {
        "2026-03-01T03:00:00+00:00": ("daily", "weekly", "monthly", "yearly"),
        "2026-02-28T03:00:00+00:00": ("daily", "monthly"),
        "2026-02-27T03:00:00+00:00": ("daily",),
        "2026-02-22T03:00:00+00:00": ("weekly",),
    }


def test_a_period_without_a_backup_does_not_count() -> None:
    rare = [backup(BEGIN + number * 40 * DAY) for number in range(4)]
    assert len(kept(rare, daily=4)) == 4
    assert len(kept(rare, monthly=3)) == 3


def test_periods_are_those_of_the_policys_time_zone() -> None:
    late, early = (
        backup(dt.datetime(2026, 6, 1, 21, 30, tzinfo=dt.UTC)),
        backup(dt.datetime(2026, 6, 1, 22, 30, tzinfo=dt.UTC)),
    )
    assert len(kept([late, early], daily=2)) == 1
    assert len(kept([late, early], "Europe/Berlin", daily=2)) == 2, "midnight lies between them"


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    first = backup(dt.datetime(2026, 10, 25, 0, 30, tzinfo=dt.UTC))
    second = backup(dt.datetime(2026, 10, 25, 1, 30, tzinfo=dt.UTC))
    assert len(kept([first, second], "Europe/Berlin", hourly=2)) == 2


def test_weeks_around_new_year_are_iso_weeks() -> None:
    december, january = (
        backup(dt.datetime(2025, 12, 31, tzinfo=dt.UTC)),
        backup(dt.datetime(2026, 1, 4, tzinfo=dt.UTC)),
    )
    assert len(kept([december, january], weekly=2)) == 1


def test_what_a_kept_increment_lies_on_is_kept() -> None:
    chain = [
        backup(BEGIN, "full"),
        backup(BEGIN + HOUR, "one", "full"),
        backup(BEGIN + 2 * HOUR, "two", "one"),
        backup(BEGIN + 3 * HOUR, "other"),
    ]
    assert kept(chain[:3], last=1) == {"two": ("last",), "one": (PARENT,), "full": (PARENT,)}
    assert kept(chain, last=1) == {"other": ("last",)}
    users_own = backup(BEGIN + 5 * HOUR, "users", "one")
    assert kept(chain, last=1, children=[users_own]) == {
        "other": ("last",),
        "one": (PARENT,),
        "full": (PARENT,),
    }


def test_without_a_retention_everything_is_kept() -> None:
    assert [one.rules for one in decide(days(3), None, "UTC")] == [(EVERYTHING,)] * 3


retentions = st.builds(
    Retention,
    **{field.name: st.integers(0, 6) for field in dataclasses.fields(Retention)},
)
histories = st.lists(st.integers(0, 20_000), unique=True, max_size=60).map(
    lambda hours: [backup(BEGIN + hour * HOUR) for hour in hours]
)


def names(decisions: Sequence[Decision]) -> set[str]:
    return {one.backup.job_id for one in decisions if one.rules}


@given(histories, retentions)
def test_each_rule_keeps_no_more_than_it_may_and_the_newest_always(
    backups: list[Backup], retention: Retention
) -> None:
    decisions = decide(backups, retention, "Europe/Berlin")
    assert [one.backup for one in decisions] == sorted(backups, key=lambda b: b.at, reverse=True)
    for rule, count in dataclasses.asdict(retention).items():
        assert sum(rule in one.rules for one in decisions) <= count
        if count and backups:
            assert rule in decisions[0].rules


@given(histories, retentions)
def test_deciding_again_on_what_is_left_changes_nothing(
    backups: list[Backup], retention: Retention
) -> None:
    decisions = decide(backups, retention, "Europe/Berlin")
    left = [one.backup for one in decisions if one.rules]
    assert names(decide(left, retention, "Europe/Berlin")) == names(decisions)


@given(histories, retentions, retentions)
def test_whoever_keeps_more_keeps_all_that_less_keeps(
    backups: list[Backup], one: Retention, other: Retention
) -> None:
    most = Retention(
        **{
            name: max(count, getattr(other, name))
            for name, count in dataclasses.asdict(one).items()
        }
    )
    assert names(decide(backups, one, "UTC")) <= names(decide(backups, most, "UTC"))


@given(st.lists(st.integers(-1, 30), min_size=1, max_size=30), retentions)
def test_no_kept_increment_loses_what_it_lies_on(below: list[int], retention: Retention) -> None:
    """Each lies on some earlier one, or is whole."""
    chain = [
        backup(BEGIN + number * HOUR, str(number), *([str(on)] if 0 <= on < number else []))
        for number, on in enumerate(below)
    ]
    decisions = decide(chain, retention, "UTC")
    left = names(decisions)
    assert all(one.backup.parent_ids <= left for one in decisions if one.rules)


def test_a_verified_one_does_not_go_because_of_one_that_never_was_tried() -> None:
    verified = [dataclasses.replace(one, proof=Proof.VERIFIED) for one in days(2)]
    untried = days(3, BEGIN + 2 * DAY)
    apart = decide([*verified, *untried], Retention(last=2), "UTC", verified_apart=True)
    assert [(one.backup.proof, one.rules) for one in apart] == [
        (Proof.UNTRIED, ("last",)),
        (Proof.UNTRIED, ("last",)),
        (Proof.UNTRIED, ()),
        (Proof.VERIFIED, ("last",)),
        (Proof.VERIFIED, ("last",)),
    ]


proofs = st.lists(st.booleans(), min_size=60, max_size=60)


@given(histories, proofs, retentions)
def test_untried_backups_age_as_ever_and_take_no_verified_ones_place(
    backups: list[Backup], are_verified: list[bool], retention: Retention
) -> None:
    mixed = [
        dataclasses.replace(one, proof=Proof.VERIFIED if is_verified else Proof.UNTRIED)
        for one, is_verified in zip(backups, are_verified, strict=False)
    ]
    verified = [one for one in mixed if one.proof is Proof.VERIFIED]
    left = names(decide(mixed, retention, "UTC", verified_apart=True))
    assert left == names(decide(verified, retention, "UTC")) | names(
        decide(mixed, retention, "UTC")
    )
