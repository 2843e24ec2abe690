# SPDX-License-Identifier: Apache-2.0
"""Which backups a policy keeps: the newest of each hour, day, week, month and year.

As restic's `forget` has it: from the newest back, each rule keeps the newest
backup of each of its periods until it has kept as many as it may; a backup may
be kept by several rules. Periods without a backup do not count. They are those
of the policy's time zone, weeks and their years ISO 8601's.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from zoneinfo import ZoneInfo

from api_service.store.policy_records import Backup, Proof, Retention

#: What keeps a backup beside the rules.
PARENT = "parent"
EVERYTHING = "everything"

#: Rule → the period that a local time lies in; in `last`, each backup is one of its own.
_PERIODS: Mapping[str, Callable[[dt.datetime], object]] = {
    "last": lambda _: object(),
    "hourly": lambda at: at.replace(minute=0, second=0, microsecond=0).astimezone(dt.UTC),
    "daily": lambda at: at.date(),
    "weekly": lambda at: at.isocalendar()[:2],
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: at.year,
}
RULES = tuple(_PERIODS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of one backup; no rule means that it goes."""

    backup: Backup
    #: What keeps it.
    rules: tuple[str, ...]


def decide(
    backups: Iterable[Backup],
    retention: Retention | None,
    time_zone: str,
    children: Iterable[Backup] = (),
    *,
    verified_apart: bool = False,
) -> list[Decision]:
    """Decide on an instance's backups; return the decisions, newest first.

    What a kept backup is relative to is kept, too, and what one of `children`
    is: backups that are not the policy's own. With `verified_apart` those that are
    verified are decided on as if there were no others: none of them goes because of
    one that may not boot.
    """
    ordered = sorted(backups, key=lambda one: (one.at, one.job_id), reverse=True)
    zone = ZoneInfo(time_zone)
    kept = _kept(ordered, retention, zone)
    if verified_apart:
        verified = [one for one in ordered if one.proof is Proof.VERIFIED]
        # Among fewer, a rule that keeps one of them keeps it all the more.
        kept |= _kept(verified, retention, zone)
    _keep_parents(ordered, kept, children)
    return [Decision(backup=one, rules=tuple(kept.get(one.job_id, ()))) for one in ordered]


def _kept(
    ordered: Sequence[Backup], retention: Retention | None, zone: ZoneInfo
) -> dict[str, list[str]]:
    if retention is None:
        return {one.job_id: [EVERYTHING] for one in ordered}
    kept: dict[str, list[str]] = {}
    for rule, period_of in _PERIODS.items():
        room, period = getattr(retention, rule), None
        for backup in ordered:
            lies_in = period_of(backup.at.astimezone(zone))
            if room > 0 and lies_in != period:
                room, period = room - 1, lies_in
                kept.setdefault(backup.job_id, []).append(rule)
    return kept


def _keep_parents(
    ordered: Sequence[Backup], kept: dict[str, list[str]], children: Iterable[Backup]
) -> None:
    makers = {image_id: one for one in ordered for image_id in one.image_ids}
    todo = [one for one in ordered if one.job_id in kept] + list(children)
    while todo:
        for parent_id in todo.pop().parent_ids:
            parent = makers.get(parent_id)
            if parent is not None and PARENT not in kept.setdefault(parent.job_id, []):
                kept[parent.job_id].append(PARENT)
                todo.append(parent)
