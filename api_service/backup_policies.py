# SPDX-License-Identifier: Apache-2.0
"""The use cases of backup policies: made, changed, run at once; no HTTP, no SQL.

Which instances a policy means is looked up anew at each run.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from api_service import schedule
from api_service.errors import BadRequest, Conflict, Forbidden
from api_service.schedule import Schedule
from api_service.store.engine import compiled
from api_service.store.instance_lists import InstanceQuery
from api_service.store.inventory import Inventory
from api_service.store.policies import Policies
from api_service.store.policy_records import Missed, Policy, Retention, Run, RunState
from api_service.store.policy_runs import PolicyRuns
from api_service.store.records import Instance
from common import clock
from common.context import RequestContext

LOG = logging.getLogger(__name__)

#: A run that somebody asked for waits for its instance so long.
_MANUAL_WAIT = dt.timedelta(hours=1)
_PAGE = 1000
#: Of a schedule, to find out how often it comes.
_TIMES_LOOKED_AT = 50

#: What a policy is where its maker says nothing.
_DEFAULTS: dict[str, Any] = {
    "retention": None,
    "incremental": False,
    "full_every": None,
    "freeze": None,
    "verify": False,
    "missed_runs": str(Missed.CATCH_UP),
    "jitter_s": 0,
    "enabled": True,
}
_AS_GIVEN = (
    "name",
    "instances",
    "incremental",
    "full_every",
    "freeze",
    "verify",
    "jitter_s",
    "enabled",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BackupPolicies:
    """Makes and changes policies; `most` is how many a project may have, None any number.

    What is `given` has passed the schema of its request. Each raises BadRequest
    naming the field that cannot be.
    """

    policies: Policies
    runs: PolicyRuns
    inventory: Inventory
    most: int | None = None
    #: Between two times of a schedule lies so much at least.
    min_interval_s: float = 0.0
    #: Backups can be tried by booting them.
    can_verify: bool = False

    def create(self, caller: RequestContext, given: Mapping[str, Any]) -> Policy:
        """Make a policy of the caller's project.

        Also raises OverQuota, or Forbidden where the caller has no project.
        """
        if caller.project_id is None:
            raise Forbidden("A policy belongs to a project: ask with a token of one.")
        fields = _fields({**_DEFAULTS, **given})
        self._require_possible(caller.project_id, fields, set(fields))
        now = clock.now()
        policy = Policy(
            id=str(uuid.uuid4()),
            project_id=caller.project_id,
            user_id=caller.user_id,
            context={**caller.to_dict(), "auth_token": None},
            next_due_at=_next_due(fields, now),
            created_at=now,
            updated_at=now,
            **fields,
        )
        self.policies.add(policy, self.most)
        LOG.info("User %s made backup policy %s (%s)", caller.user_id, policy.id, policy.name)
        return policy

    def replace(self, policy: Policy, given: Mapping[str, Any]) -> Policy | None:
        """Make all of a policy anew; None: it is gone."""
        return self._change(policy, lambda _: {**_DEFAULTS, **given})

    def change(self, policy: Policy, given: Mapping[str, Any]) -> Policy | None:
        """Change the given fields of a policy; None: it is gone."""
        return self._change(policy, lambda known: {**as_given(known), **given})

    def remove(self, caller: RequestContext, policy: Policy) -> None:
        """Forget a policy and its runs; one that is gone is fine."""
        if self.policies.remove(policy.id):
            what = (caller.user_id, policy.id, policy.name)
            LOG.info("User %s deleted backup policy %s (%s)", *what)

    def run_now(self, caller: RequestContext, policy: Policy) -> list[Run]:
        """Have a backup of each of a policy's instances made, whatever its schedule says.

        Those that such a run waits for already are left out. Raises Conflict if
        there are no others.
        """
        now, waiting = clock.now(), self.runs.waited_for(policy.id)
        runs = [
            new_run(policy, instance, due_at=now, give_up_at=now + _MANUAL_WAIT, manual=True)
            for instance in self.instances_of(policy)
            if instance.uuid not in waiting
        ]
        if not runs:
            raise Conflict(
                f"Policy {policy.id} means no instance that exists and is not waited for already."
            )
        self.runs.add(runs)
        what = (caller.user_id, policy.id, policy.name, len(runs))
        LOG.info("User %s runs backup policy %s (%s): %d instances", *what)
        return runs

    def instances_of(self, policy: Policy) -> list[Instance]:
        """Return the instances that a policy means now, of its project alone."""
        is_meant = _test_of(policy.instances)
        return [one for one in self._instances(policy) if is_meant(one)]

    def _instances(self, policy: Policy) -> Iterator[Instance]:
        query = InstanceQuery(
            project_id=policy.project_id,
            uuids=tuple(policy.instances.get("ids", ())),
            limit=_PAGE,
        )
        while True:
            found = self.inventory.instances(query)
            yield from found
            if len(found) < _PAGE:
                return
            query = dataclasses.replace(query, marker=found[-1].uuid)

    def _change(
        self, policy: Policy, given_of: Callable[[Policy], Mapping[str, Any]]
    ) -> Policy | None:
        wanted = _fields(given_of(policy))
        # What was possible once must not keep somebody from changing something else.
        news = {name for name, value in wanted.items() if getattr(policy, name) != value}
        self._require_possible(policy.project_id, wanted, news)

        def changed(known: Policy) -> Policy:
            fields, now = _fields(given_of(known)), clock.now()
            next_due_at = known.next_due_at
            if any(getattr(known, one) != fields[one] for one in ("cron", "time_zone", "enabled")):
                next_due_at = _next_due(fields, now)
            return dataclasses.replace(known, **fields, next_due_at=next_due_at, updated_at=now)

        return self.policies.change(policy.id, changed)

    def _require_possible(
        self, project_id: str, fields: Mapping[str, Any], news: Collection[str]
    ) -> None:
        """Raise BadRequest for what cannot be, of the fields that are news."""
        if "cron" in news or "time_zone" in news:
            self._require_seldom(fields)
        if "verify" in news and fields["verify"] and not self.can_verify:
            raise _invalid("verify", "This cloud cannot try backups.")
        if fields["full_every"] is not None and not fields["incremental"]:
            raise _invalid("full_every", "It is for policies that are incremental.")
        if "instances" in news:
            self._require_known(project_id, fields["instances"])

    def _require_seldom(self, fields: Mapping[str, Any]) -> None:
        times = Schedule(cron=fields["cron"], time_zone=fields["time_zone"])
        if any(seconds < self.min_interval_s for seconds in _intervals_s(times)):
            what = f"Its times must lie {self.min_interval_s:.0f} seconds apart or more."
            raise _invalid("schedule.cron", what)

    def _require_known(self, project_id: str, chosen: Mapping[str, Any]) -> None:
        for instance_uuid in chosen.get("ids", ()):
            instance = self.inventory.instance(instance_uuid)
            if instance is None or instance.project_id != project_id:
                what = f"Instance {instance_uuid} could not be found."
                raise _invalid("instances.ids", what)
        if "name" in chosen:
            try:
                compiled(chosen["name"])
            except ValueError as error:
                raise _invalid("instances.name", f"It is {error}.") from None


def _intervals_s(times: Schedule) -> Iterator[float]:
    """Yield the seconds between the next times of a schedule, one after the other."""
    at = times.next_after(clock.now())
    for _ in range(_TIMES_LOOKED_AT):
        after = times.next_after(at) if at else None
        if at is None or after is None:
            return
        yield (after - at).total_seconds()
        at = after


def new_run(
    policy: Policy,
    instance: Instance,
    *,
    due_at: dt.datetime,
    give_up_at: dt.datetime,
    late_since: dt.datetime | None = None,
    manual: bool = False,
) -> Run:
    """Return a run, waiting; one that was missed begins, and counts, as of `late_since`."""
    later = schedule.jitter(policy.id, instance.uuid, 0 if manual else policy.jitter_s)
    return Run(
        id=str(uuid.uuid4()),
        policy_id=policy.id,
        instance_uuid=instance.uuid,
        state=RunState.WAITING,
        manual=manual,
        due_at=due_at,
        counts_at=late_since or due_at,
        start_at=(late_since or due_at) + later,
        give_up_at=give_up_at + later,
        retry_at=None,
        attempts=0,
        job_id=None,
        verify_job_id=None,
        reason=None,
        reason_code=None,
        created_at=clock.now(),
        finished_at=None,
    )


def as_given(policy: Policy) -> dict[str, Any]:
    """Return a policy as its maker would write it."""
    return {
        **{name: getattr(policy, name) for name in _AS_GIVEN},
        "schedule": {"cron": policy.cron, "time_zone": policy.time_zone},
        "retention": rules_of(policy.retention),
        "missed_runs": str(policy.missed),
    }


def rules_of(retention: Retention | None) -> dict[str, int] | None:
    """Return the rules that keep something."""
    if retention is None:
        return None
    return {name: count for name, count in dataclasses.asdict(retention).items() if count}


def retention_of(given: Mapping[str, int] | None) -> Retention | None:
    """Return a retention; raise BadRequest for one that would keep nothing at all."""
    if given is None:
        return None
    if not any(given.values()):
        what = "It would keep nothing: let one of its rules be 1 or more, or leave it out."
        raise _invalid("retention", what)
    return Retention(**given)


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
    times = Schedule(**given["schedule"])
    return {
        **{name: given[name] for name in _AS_GIVEN},
        **dataclasses.asdict(times),
        "retention": retention_of(given["retention"]),
        "missed": Missed(given["missed_runs"]),
    }


def _next_due(fields: Mapping[str, Any], now: dt.datetime) -> dt.datetime | None:
    if not fields["enabled"]:
        return None
    return Schedule(cron=fields["cron"], time_zone=fields["time_zone"]).next_after(now)


def _test_of(chosen: Mapping[str, Any]) -> Callable[[Instance], bool]:
    if "name" in chosen:
        pattern = compiled(chosen["name"])
        return lambda instance: pattern.search(instance.name) is not None
    wanted = chosen.get("metadata", {}).items()
    return lambda instance: wanted <= instance.metadata.items()


def _invalid(field: str, what: str) -> BadRequest:
    return BadRequest(f"Invalid input for field/attribute {field}. {what}")
