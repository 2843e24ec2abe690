# SPDX-License-Identifier: Apache-2.0
"""The ledger's jobs, moved by anybody in any order, checked against the tables that it runs on.

What is expected is worked out from `states.TRANSITIONS` alone, with the one
exception that the ledger documents: a job that the API itself had given up is
done after all if its agent says so before its image was removed.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import uuid

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from api_service.store.engine import Database
from api_service.store.inventory import Inventory
from api_service.store.ledger import GIVEN_UP, Ledger
from api_service.store.models import Base
from api_service.store.records import Job, NewJob
from common import clock
from common.errors import InstanceBusy
from common.reports import HostReport, InstanceRecord, JobAccepted, JobOutcome, JobProgress
from common.states import (
    ENDED,
    EVENT_OF_OUTCOME,
    OPEN,
    TRANSITIONS,
    JobEvent,
    JobKind,
    JobState,
    TaskState,
)
from tests.api import agents as agent_says

INSTANCES = tuple(
    agent_says.instance(uuid=str(uuid.UUID(int=number)), name=f"web-{number}") for number in (1, 2)
)
REASONS = (*sorted(GIVEN_UP), "capture_failed")
ORDER = (JobState.PENDING, JobState.ACCEPTED, JobState.RUNNING)
#: Of a report, in seconds: they come in any order.
MOMENTS = st.sampled_from((-5.0, 0.0, 5.0))


@functools.cache
def database() -> Database:
    """One in memory; each example begins with empty tables."""
    made = Database("sqlite://")
    made.sync()
    return made


@dataclasses.dataclass(slots=True)
class Expected:
    """What the tables say of a job."""

    id: str
    image_id: str
    instance: str
    state: JobState = JobState.PENDING
    reason_code: str | None = None
    is_removed: bool = False
    progress_at: float | None = None

    def after(self, event: JobEvent) -> JobState | None:
        """Return the state that the event leads to; None if it moves nothing."""
        if self.state is JobState.ERROR and event is JobEvent.FINISH:
            is_late = self.reason_code in GIVEN_UP and not self.is_removed
            return JobState.DONE if is_late else None
        return TRANSITIONS.get((self.state, event))


class Jobs(RuleBasedStateMachine):
    """Requests, reports, the reaper and the administrator, each whenever it likes."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        with database().engine.begin() as connection:
            for table in Base.metadata.sorted_tables:
                connection.execute(table.delete())
        self.ledger, self.inventory = Ledger(database()), Inventory(database())
        self.at = clock.epoch_s()
        self.inventory.take(HostReport.from_wire(agent_says.heartbeat(*INSTANCES, at=self.at)))
        self.expected: dict[str, Expected] = {}
        self.holder: dict[str, str | None] = {record.uuid: None for record in INSTANCES}

    @rule(target=jobs, record=st.sampled_from(INSTANCES))
    def ask(self, record: InstanceRecord) -> str:
        """A snapshot can be asked for exactly while there is no task state."""
        uuid_ = record.uuid
        instance = self.inventory.instance(uuid_)
        assert instance is not None
        job = Expected(id=str(uuid.uuid4()), image_id=str(uuid.uuid4()), instance=uuid_)
        new = NewJob(
            id=job.id,
            kind=JobKind.SNAPSHOT,
            instance=instance,
            user_id="demo",
            image_id=job.image_id,
            options={},
            context={},
            action="createImage",
            task_state=TaskState.IMAGE_SNAPSHOT_PENDING,
            deadline_at=clock.now() + dt.timedelta(minutes=5),
        )
        if instance.task_state is None:
            self.ledger.reserve(new)
            self.expected[job.id], self.holder[uuid_] = job, job.id
            return job.id
        with pytest.raises(InstanceBusy):
            self.ledger.reserve(new)
        holder = self.holder[uuid_]
        assert holder is not None, "held by nobody"
        return holder

    @rule(target=jobs, record=st.sampled_from(INSTANCES))
    def begin_elsewhere(self, record: InstanceRecord) -> str:
        """An agent got a job from another service; its instance may be held already."""
        uuid_ = record.uuid
        job = Expected(
            id=str(uuid.uuid4()),
            image_id=str(uuid.uuid4()),
            instance=uuid_,
            state=JobState.ACCEPTED,
        )
        report = JobAccepted.from_wire(agent_says.accepted(job.id, uuid_, job.image_id))
        assert self.ledger.record(report, {})
        assert not self.ledger.record(report, {}), "doubled"
        if self.holder[uuid_] is None:
            self.holder[uuid_] = job.id
        self.expected[job.id] = job
        return job.id

    @rule(job_id=jobs)
    def accept(self, job_id: str) -> None:
        job = self.expected[job_id]
        report = agent_says.accepted(job.id, job.instance, job.image_id)
        self._moved(job, JobEvent.ACCEPT, self.ledger.accept(JobAccepted.from_wire(report)))

    @rule(job_id=jobs, moment_s=MOMENTS, done=st.integers(0, 1000))
    def progress(self, job_id: str, moment_s: float, done: int) -> None:
        job, at = self.expected[job_id], self.at + moment_s
        report = agent_says.progress(job_id, at=at, bytes_done=done)
        came = self.ledger.progress(JobProgress.from_wire(report))
        if job.progress_at is not None and at < job.progress_at:
            assert came is None, "a newer one has overtaken it"
            return
        if self._moved(job, JobEvent.PROGRESS, came):
            job.progress_at = at

    @rule(job_id=jobs, state=st.sampled_from((JobState.DONE, *sorted(ENDED))))
    def finish(self, job_id: str, state: JobState) -> None:
        job = self.expected[job_id]
        why = {} if state is JobState.DONE else {"reason": "no", "reason_code": "capture_failed"}
        report = agent_says.finished(job.id, job.instance, job.image_id, state=state, **why)
        came = self.ledger.finish(JobOutcome.from_wire(report))
        self._moved(job, EVENT_OF_OUTCOME[state], came, why.get("reason_code"))

    @rule(job_id=jobs, reason_code=st.sampled_from(REASONS))
    def give_up(self, job_id: str, reason_code: str) -> None:
        """The reaper, or a request that failed."""
        came = self.ledger.fail(job_id, "too late", reason_code)
        self._moved(self.expected[job_id], JobEvent.FAIL, came, reason_code)

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        """What no agent has ends at once; anything else once its agent says so."""
        job = self.expected[job_id]
        came = self.ledger.cancel(job_id)
        if job.state is JobState.PENDING:
            self._moved(job, JobEvent.CANCEL, came, "cancelled")
        else:
            assert (came is None) == (job.state in ENDED)

    @rule(job_id=jobs)
    def go_on(self, job_id: str) -> None:
        """What moves no job: its image was made, its limit changed, its host heard of."""
        state = self.expected[job_id].state
        assert self.ledger.make_castable(job_id) == (state is JobState.PENDING)
        assert (self.ledger.limit(job_id, 7) is not None) == (state in OPEN)
        self.inventory.take(HostReport.from_wire(agent_says.heartbeat(*INSTANCES, at=self.at)))

    @precondition(lambda self: self.ledger.to_discard())
    @rule(kept=st.booleans())
    def see_to_images(self, kept: bool) -> None:
        """The reaper looks at what ended jobs left."""
        for job in self.ledger.to_discard():
            self.ledger.was_discarded(job.id, kept=kept)
            self.expected[job.id].is_removed |= not kept

    @invariant()
    def each_job_stands_where_the_tables_say(self) -> None:
        found = {job.id: job for job in self.ledger.jobs()}
        assert {one.id: one.state for one in found.values()} == {
            one.id: one.state for one in self.expected.values()
        }
        for job in found.values():
            assert not job.discard_image or job.state in ENDED
            assert (job.finished_at is not None) == (job.state in ENDED)
            assert (job.reason is not None) == (job.state in ENDED - {JobState.DONE})

    @invariant()
    def an_instance_has_a_task_state_exactly_while_an_open_job_holds_it(self) -> None:
        for uuid_, holder in self.holder.items():
            instance = self.inventory.instance(uuid_)
            assert instance is not None
            assert instance.job_id == holder
            assert (instance.task_state is None) == (holder is None)
            assert holder is None or self.expected[holder].state in OPEN
            assert holder is not None or instance.progress == 0

    def _moved(
        self, job: Expected, event: JobEvent, came: Job | None, reason_code: str | None = None
    ) -> bool:
        """Take an event into what is expected; what came of it must be the same."""
        after = job.after(event)
        assert (came.state if came else None) == after
        if after is None:
            return False
        assert job.state in OPEN or after is JobState.DONE, "an ended job was opened"
        assert after in ENDED or ORDER.index(after) >= ORDER.index(job.state), "it went back"
        job.state = after
        if after in ENDED:
            job.reason_code = reason_code
            if self.holder[job.instance] == job.id:
                self.holder[job.instance] = None
        return True


Jobs.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestJobs = Jobs.TestCase
