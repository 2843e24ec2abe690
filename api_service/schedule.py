# SPDX-License-Identifier: Apache-2.0
"""When a backup policy is due: a cron expression in a time zone, and jitter.

Cron as Debian's (library cronsim), five fields. Where the clocks are put
forward, what lay in the lost hour is due at its end; where they are put back,
what is due at an hour of the day is due in the first of the two. Only what runs
every hour (`*` for hours) goes by the hours that pass.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import hashlib
import re
import zoneinfo
from collections.abc import Iterator

from cronsim import CronSim, CronSimError

from api_service.errors import BadRequest

CRON_MAX = 100
_FIELDS = 5
#: Cron's "every": field → what it counts.
_EVERY = {0: "0-59", 1: "0-23"}
_LOOK_BACK = dt.timedelta(days=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Times to be at; raises BadRequest naming the field for one that cannot be."""

    cron: str
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        if self.time_zone not in _time_zones():
            raise _invalid("time_zone", self.time_zone, "It is no IANA time zone (Europe/Berlin).")
        fields = self.cron.split()
        if len(fields) != _FIELDS or len(self.cron) > CRON_MAX:
            what = "It has five fields: minute, hour, day of month, month, day of week."
            raise _invalid("cron", self.cron, what)
        try:
            CronSim(self.cron, dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
        except (CronSimError, ValueError) as error:
            raise _invalid("cron", self.cron, f"{error}.") from None

    def next_after(self, moment: dt.datetime) -> dt.datetime | None:
        """Return the first time after a moment, in UTC; None: none in the next 50 years."""
        return next(self._after(moment), None)

    def newest(self, since: dt.datetime, until: dt.datetime) -> dt.datetime | None:
        """Return the last of the times from `since` to `until`, both included; None: none."""
        # From near the end, so that a long time without us is not walked through.
        for begin in (max(since, until - _LOOK_BACK), since):
            found = None
            for time in self._after(begin - dt.timedelta(seconds=1)):
                if time > until:
                    break
                found = time
            if found is not None:
                return found
        return None

    def _after(self, moment: dt.datetime) -> Iterator[dt.datetime]:
        last = moment
        zone = zoneinfo.ZoneInfo(self.time_zone)
        for local in CronSim(_by_the_day(self.cron), moment.astimezone(zone)):
            time = local.astimezone(dt.UTC)
            # In an hour that comes twice cronsim begins with the first; several
            # times of a lost hour are one.
            if time > last:
                last = time
                yield time


def jitter(policy_id: str, instance_uuid: str, most_s: int) -> dt.timedelta:
    """Return how much later than due an instance's runs begin: always the same, up to `most_s`."""
    digest = hashlib.sha256(f"{policy_id} {instance_uuid}".encode()).digest()
    return dt.timedelta(seconds=int.from_bytes(digest[:8]) % (most_s + 1))


def _by_the_day(cron: str) -> str:
    """Write `*/n` as a range wherever hours are named.

    cronsim, as Debian, takes a field that begins with a star for "goes by the
    hours that pass": half past two, as `*/30 2`, would come twice or never.
    """
    fields = cron.split()
    if fields[1] == "*":
        return cron
    for place, range_ in _EVERY.items():
        fields[place] = re.sub(r"^\*", range_, fields[place])
    return " ".join(fields)


@functools.cache
def _time_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


def _invalid(field: str, value: str, what: str) -> BadRequest:
    return BadRequest(
        f"Invalid input for field/attribute schedule.{field}. Value: {value[:CRON_MAX]}. {what}"
    )
