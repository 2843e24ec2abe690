# SPDX-License-Identifier: Apache-2.0
"""Jobs, and the hold that each has on its instance: `task_state` and `job_id`.

A job and its hold are taken in one transaction and given back in one, so an
instance is never held by nobody. States move by `common.states.advance`, but for
one: where the API itself gave a job up, its agent may know better.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import case, select, update
from sqlalchemy.orm import Session

from api_service.store import job_lists, job_rows, lifecycles, records
from api_service.store.engine import Database, retried
from api_service.store.job_lists import JobQuery
from api_service.store.models import InstanceRow, JobRow
from api_service.store.readable import readable
from api_service.store.records import Job, Listener, NewJob
from common import clock
from common.errors import InstanceBusy, InstanceNotFound
from common.reports import JobAccepted, JobOutcome, JobProgress
from common.states import (
    ENDED,
    EVENT_OF_OUTCOME,
    FIRST_TASK_STATE,
    IMAGE_KINDS,
    OPEN,
    VM_STATE_OF_POWER_STATE,
    IllegalTransition,
    JobEvent,
    JobKind,
    JobState,
    PowerState,
    TaskState,
    VmState,
    advance,
)

_PERCENT = 100

#: Why the API itself ends a job: what it concludes from a silence, and may be wrong about.
GIVEN_UP = frozenset({"deadline_passed", "agent_unavailable", "agent_lost_job"})


class Ledger:
    """The jobs of the cloud; thread-safe. `listener` hears of every move, once it is committed."""

    def __init__(self, database: Database, listener: Listener | None = None) -> None:
        self.database = database
        self._listener = listener

    @retried
    def reserve(self, new: NewJob) -> Job:
        """Take hold of an instance for a new job, if nobody has it.

        Unless it says so the job is not castable yet: its image does not exist. Raises
        InstanceBusy (the message names the task state), InstanceNotFound or OverQuota.
        """
        with self.database.write() as session:
            job_lists.require_room(session, new)
            if not _take(session, new.instance.uuid, new.id, new.task_state):
                raise _why_not_taken(session, new)
            row = job_rows.new_row(new)
            session.add(row)
            session.flush()
            return records.job(row)

    @retried
    def make_castable(self, job_id: str) -> bool:
        """The job's image exists: from now on the dispatcher casts it.

        False: the reaper has ended the job meanwhile, and it never will be.
        """
        pending = (JobRow.id == job_id, JobRow.state == JobState.PENDING)
        with self.database.write() as session:
            return _rowcount(session, update(JobRow).where(*pending).values(castable=True)) == 1

    def discard(self, job_id: str) -> None:
        """Note that an ended job's image may exist (again)."""
        self._set(job_id, discard_image=True)

    def was_discarded(self, job_id: str, *, kept: bool) -> None:
        """Note that an ended job's image was seen to: nothing is left of it, or it is `kept`."""
        gone_at = {} if kept else {"discarded_at": clock.now()}
        self._set(job_id, discard_image=False, **gone_at)

    def was_cast(self, job_id: str) -> None:
        """Note that the job was sent to its agent."""
        self._set(job_id, cast_at=clock.now())

    def accept(self, report: JobAccepted) -> Job | None:
        """Note that the agent has the job; None if that changes nothing."""
        values = {"accepted_at": clock.from_epoch(report.at), "reported_at": clock.now()}
        return self._advance(report.job_id, JobEvent.ACCEPT, values)

    def progress(self, report: JobProgress) -> Job | None:
        """Note where a job stands, on it and on its instance; None if it has ended."""
        at = clock.from_epoch(report.at)
        values = {
            "step": report.step,
            "bytes_done": report.bytes_done,
            "bytes_total": report.bytes_total,
            "rate_bytes_s": report.rate_bytes_s,
            "eta_s": report.eta_s,
            "progress_at": at,
            "reported_at": clock.now(),
        }
        shown: dict[str, Any] = {}
        if report.task_state in frozenset(TaskState):
            shown["task_state"] = report.task_state
        if report.bytes_total > 0:
            percent = report.bytes_done * _PERCENT // report.bytes_total
            shown["progress"] = max(0, min(_PERCENT, percent))
        return self._advance(report.job_id, JobEvent.PROGRESS, values, shown, newer_than=at)

    def finish(self, outcome: JobOutcome) -> Job | None:
        """End a job as its agent says, and let go of the instance; None if it had ended.

        One that the API had given up is done after all, if its image still stands.
        """
        values = {
            "reason": outcome.reason,
            "reason_code": outcome.reason_code,
            "size_bytes": outcome.size_bytes,
            "sha512": outcome.sha512,
            "capture": outcome.capture.to_wire() if outcome.capture else None,
            "steps": [step.to_wire() for step in outcome.steps],
            "images": [image.to_wire() for image in outcome.images],
            "reported_at": clock.now(),
        }
        if outcome.state is JobState.DONE and outcome.kind in IMAGE_KINDS:
            total = sum(image.size_bytes or 0 for image in outcome.images)
            total = total or outcome.size_bytes or 0
            # The image may be another than was asked for, if the first failed its verification.
            values |= {"bytes_done": total, "bytes_total": total, "image_id": outcome.image_id}
            values["rotation_due"] = outcome.kind is JobKind.BACKUP
        event, shown = EVENT_OF_OUTCOME[outcome.state], records.shown_by(outcome)
        return self._end(outcome.job_id, event, values, outcome.power_state, shown)

    def fail(self, job_id: str, reason: str, reason_code: str) -> Job | None:
        """End a job in error for a reason of the API's own; None if it had ended."""
        return self._end(job_id, JobEvent.FAIL, {"reason": reason, "reason_code": reason_code})

    def complete(self, job_id: str) -> Job | None:
        """End a job that was done here, without an agent; None if it had ended."""
        return self._end(job_id, JobEvent.FINISH, {})

    @retried
    def cancel(self, job_id: str) -> Job | None:
        """Note that somebody wants the job to end; None if it has ended already.

        A job that no agent has accepted ends here and now. Another one goes on
        until its agent has ended it, with `cancel_asked_at` set.
        """
        reason = {"reason": "the job was cancelled", "reason_code": "cancelled"}
        with self.database.write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None or JobState(row.state) in ENDED:
                return None
            row.cancel_asked_at = row.cancel_asked_at or clock.now()
            session.flush()
            asked = records.job(row)
        if asked.state is JobState.PENDING:
            return self._end(job_id, JobEvent.CANCEL, reason) or asked
        return asked

    @retried
    def limit(self, job_id: str, bandwidth_limit: int) -> Job | None:
        """Note another limit of an open job's own, in MB/s; None if it has ended already."""
        with self.database.write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None or JobState(row.state) in ENDED:
                return None
            row.options = {**row.options, "bandwidth_limit": bandwidth_limit}
            row.limit_due = True
            session.flush()
            return records.job(row)

    @retried
    def was_limited(self, job_id: str, bandwidth_limit: int) -> None:
        """Note that the job's agent was told this limit; another may have come meanwhile."""
        with self.database.write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is not None and (row.options.get("bandwidth_limit") or 0) == bandwidth_limit:
                row.limit_due = False

    @retried
    def record(self, report: JobAccepted | JobOutcome, context: dict[str, Any]) -> bool:
        """Enter a job that an agent got from somebody else; False if it is known.

        Also False if what should be ids are none: nothing could ever be done with such a row.
        """
        ids = [report.job_id, report.instance.uuid]
        if report.kind in IMAGE_KINDS:
            ids.append(report.image_id)
        if not all(map(records.is_id, ids)):
            return False
        with self.database.write() as session:
            if session.get(JobRow, report.job_id) is not None:
                return False
            instance = session.get(InstanceRow, report.instance.uuid)
            now = clock.now()
            row = JobRow(
                id=report.job_id,
                kind=report.kind,
                state=JobState.ACCEPTED,
                instance_uuid=report.instance.uuid,
                project_id=instance.project_id if instance else report.instance.project_id,
                user_id=context.get("user") or report.instance.user_id,
                host=report.host,
                # Empty of an image that was only read: what a failed job has made is removed.
                image_id=report.image_id if report.kind in IMAGE_KINDS else "",
                options=records.options_of(report),
                context=context,
                castable=False,
                created_at=now,
                deadline_at=now,
                accepted_at=now,
                backup_type=report.backup_type,
                rotation=report.rotation,
                **job_rows.NOTHING_DONE,
            )
            session.add(row)
            session.flush()
            task_state = FIRST_TASK_STATE[report.kind]
            _take(session, report.instance.uuid, report.job_id, task_state)
            entered = records.job(row)
        self._tell(None, entered)
        return True

    def find(self, job_id: str) -> Job | None:
        """Return a job."""
        with self.database.read() as session:
            row = session.get(JobRow, job_id)
            return records.job(row) if row else None

    def jobs(self, query: JobQuery | None = None) -> list[Job]:
        """Return jobs, newest first, one page of them."""
        with self.database.read() as session:
            return [records.job(row) for row in job_lists.page(session, query or JobQuery())]

    def to_discard(self) -> list[Job]:
        """Return the ended jobs whose image may have to be removed, those that can be read."""
        with self.database.read() as session:
            rows = session.scalars(select(JobRow).where(JobRow.discard_image.is_(True)))
            return readable("Job", rows, records.job)

    def open_jobs(self) -> list[Job]:
        """Return every job that has not ended and can be read."""
        query = select(JobRow).where(JobRow.state.in_(list(OPEN))).order_by(JobRow.created_at)
        with self.database.read() as session:
            return readable("Job", session.scalars(query), records.job)

    @retried
    def _set(self, job_id: str, **values: Any) -> None:
        with self.database.write() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))

    def _end(
        self,
        job_id: str,
        event: JobEvent,
        values: dict[str, Any],
        power_state: PowerState | None = None,
        also_shown: dict[str, Any] | None = None,
    ) -> Job | None:
        ended = {
            "finished_at": clock.now(),
            "eta_s": None,
            "rate_bytes_s": 0.0,
            # Until somebody has seen to it: Glance may be away now.
            "discard_image": event is not JobEvent.FINISH,
        }
        shown: dict[str, Any] = {"task_state": None, **(also_shown or {})}
        if power_state is not None:
            # At once, not with the next report: whoever waits for the job looks now.
            vm_state = str(VM_STATE_OF_POWER_STATE[power_state])
            shown |= {"power_state": int(power_state), "vm_state": vm_state}
            if event is JobEvent.FINISH:
                shown["in_error"] = False
            else:
                # What failed mends nothing that an administrator holds to be broken.
                shown["vm_state"] = case((InstanceRow.in_error, str(VmState.ERROR)), else_=vm_state)
        return self._advance(job_id, event, values | ended, shown)

    @retried
    def _advance(
        self,
        job_id: str,
        event: JobEvent,
        values: dict[str, Any],
        shown: dict[str, Any] | None = None,
        newer_than: dt.datetime | None = None,
    ) -> Job | None:
        """Move a job, and show `shown` on the instance that it holds; None if it cannot move.

        With `newer_than`, a report that a newer one has overtaken moves nothing.
        """
        with self.database.write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None:
                return None
            if newer_than is not None and row.progress_at and newer_than < row.progress_at:
                return None
            try:
                state = _next_state(row, event)
            except IllegalTransition:
                return None  # a late or doubled report
            before = records.job(row) if self._listener else None
            if row.kind not in IMAGE_KINDS or not row.image_id:
                values = {**values, "discard_image": False}
            for name, value in {**values, "state": state}.items():
                setattr(row, name, value)
            if shown:
                _show(session, row, shown, state)
            session.flush()
            lifecycles.settle(session, row, state)
            moved = records.job(row)
        self._tell(before, moved)
        return moved

    def _tell(self, before: Job | None, job: Job) -> None:
        if self._listener is not None:
            self._listener(before, job)


def _next_state(row: JobRow, event: JobEvent) -> JobState:
    """Return the state after `event`; raise IllegalTransition if there is none."""
    given_up = row.state == JobState.ERROR and row.reason_code in GIVEN_UP
    if event is JobEvent.FINISH and given_up and row.discarded_at is None:
        return JobState.DONE
    return advance(JobState(row.state), event)


def _show(session: Session, job: JobRow, shown: dict[str, Any], state: JobState) -> None:
    let_go = {"job_id": None, "progress": 0} if state in ENDED else {}
    session.execute(
        update(InstanceRow)
        .where(InstanceRow.uuid == job.instance_uuid, InstanceRow.job_id == job.id)
        .values(**shown, **let_go, updated_at=clock.now())
    )


def _take(session: Session, instance_uuid: str, job_id: str, task_state: str) -> bool:
    """Take hold of an instance, if it exists and nobody has it."""
    free = (
        InstanceRow.uuid == instance_uuid,
        InstanceRow.task_state.is_(None),
        InstanceRow.deleted_at.is_(None),
    )
    held = {"task_state": task_state, "job_id": job_id, "progress": 0, "updated_at": clock.now()}
    return _rowcount(session, update(InstanceRow).where(*free).values(**held)) == 1


def _why_not_taken(session: Session, new: NewJob) -> InstanceBusy | InstanceNotFound:
    row = session.get(InstanceRow, new.instance.uuid)
    if row is None or row.deleted_at is not None:
        return InstanceNotFound(f"Instance {new.instance.uuid} could not be found.")
    return InstanceBusy(
        f"Cannot '{new.action}' instance {row.uuid} while it is in task_state {row.task_state}"
    )


def _rowcount(session: Session, statement: Any) -> int:
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]
