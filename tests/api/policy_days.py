# SPDX-License-Identifier: Apache-2.0
"""Days of backup policies in moments: a clock that a test sets, and an agent that does its jobs."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from api_service.scheduler import Scheduler
from api_service.store.records import Job
from common import clock
from common.messages import InstanceRef
from common.reports import DiskImage, InstanceRecord
from common.states import JobState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, headers

BEGIN = dt.datetime(2026, 3, 2, 12, tzinfo=dt.UTC)
MEMBER = "demo:p-demo"
POLICIES = "/v1/policies"


class Clock:
    """The wall clock of every part, where a test wants it to be."""

    def __init__(self, patch: pytest.MonkeyPatch, now: dt.datetime = BEGIN) -> None:
        self.now = now
        patch.setattr(clock, "now", lambda: self.now)
        patch.setattr(clock, "epoch_s", lambda: self.now.timestamp())

    def advance(self, **by: float) -> None:
        """Let time pass."""
        self.now += dt.timedelta(**by)


class Days:
    """A cloud whose scheduler a test calls round by round, and whose agent is quick."""

    def __init__(self, cloud: Cloud, clock_: Clock) -> None:
        self.cloud, self.clock = cloud, clock_
        self.instances: list[InstanceRecord] = []
        self.scheduler: Scheduler = cloud.policies.scheduler(5.0)
        #: Increments lie on the image before, as an agent with checkpoints makes them.
        self._newest: dict[str, str] = {}
        self.chain_lengths: list[int] = []

    def add_instance(self, **changes: Any) -> InstanceRecord:
        """Have the host announce one more."""
        record = agent_says.instance(**changes)
        self.instances.append(record)
        self.announce()
        return record

    def begin_at(self, moment: dt.datetime) -> None:
        """Let it be that time, with a heartbeat."""
        self.clock.now = moment
        self.announce()

    def announce(self) -> None:
        """Let a heartbeat come."""
        self.cloud.announce(*self.instances)

    def make(self, who: str = MEMBER, **fields: Any) -> dict[str, Any]:
        """Make a policy; by default nightly at 02:00 UTC, of the whole project."""
        reply = self.ask("POST", POLICIES, {"policy": wish(**fields)}, who)
        assert reply.status_code == 201, reply.text
        made: dict[str, Any] = reply.json["policy"]
        return made

    def ask(self, method: str, url: str, body: Any = None, who: str = MEMBER) -> Any:
        """Ask the API."""
        given = {} if body is None else {"json": body}
        return self.cloud.http.simulate_request(method, url, headers=headers(who, "2.96"), **given)

    def runs(self, policy: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
        """Return what came of a policy, newest first."""
        reply = self.ask("GET", f"{POLICIES}/{policy['id']}/runs{query}")
        assert reply.status_code == 200, reply.text
        found: list[dict[str, Any]] = reply.json["runs"]
        return found

    def states(self, policy: dict[str, Any]) -> list[str]:
        """Return the states of a policy's runs, newest first."""
        return [run["state"] for run in self.runs(policy)]

    def pass_time(self, *, step: dt.timedelta = dt.timedelta(hours=1), **by: float) -> None:
        """Let time pass, with a round and the agent's work at each step."""
        end = self.clock.now + dt.timedelta(**by)
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + step)
            self.announce()
            self.round()

    def nights(self, count: int) -> None:
        """Let so many nights pass, with rounds at 02:00 (UTC) and a little later."""
        for _ in range(count):
            at = self.clock.now.replace(hour=2, minute=0, second=0)
            self.clock.now = at if at > self.clock.now else at + dt.timedelta(days=1)
            for minutes in (0, 10):
                self.clock.advance(minutes=minutes)
                self.announce()
                self.round()

    def round(self) -> None:
        """Let the scheduler look, the agent work, and the scheduler see what came of it."""
        self.scheduler.round()
        if self.finish_all():
            self.scheduler.round()

    def finish_all(self) -> int:
        """Let the agent do whatever it was asked for; return how much that was."""
        jobs = self.cloud.ledger.open_jobs()
        for job in jobs:
            self.finish(job)
        return len(jobs)

    def finish(self, job: Job, **changes: Any) -> None:
        """Let a job end: well, unless told otherwise."""
        ids = (job.id, job.instance_uuid, job.image_id)
        terms = {"kind": job.kind, "backup_type": job.backup_type, "rotation": job.rotation}
        named = InstanceRef(uuid=job.instance_uuid, project_id=job.project_id)
        self.cloud.report("job_accepted", agent_says.accepted(*ids, instance=named, **terms))
        if changes.get("state", JobState.DONE) is JobState.DONE:
            self.cloud.images.activate(job.image_id)
            terms["images"] = (self._disk_image(job),)
        done = agent_says.finished(*ids, instance=named, **(terms | changes))
        self.cloud.report("job_finished", done)

    def _disk_image(self, job: Job) -> DiskImage:
        below = self._newest.get(job.instance_uuid) if job.options.get("incremental") else None
        self._newest[job.instance_uuid] = job.image_id
        self.chain_lengths.append(self.chain_lengths[-1] + 1 if below else 0)
        return DiskImage(
            image_id=job.image_id,
            disk="vda",
            parent_image_id=below,
            chain_length=self.chain_lengths[-1],
        )


def wish(**fields: Any) -> dict[str, Any]:
    """Return what a policy is made of; by default nightly at 02:00 UTC, of the whole project."""
    given = {"name": "nightly", "schedule": {"cron": "0 2 * * *"}, "instances": {"all": True}}
    return given | fields
