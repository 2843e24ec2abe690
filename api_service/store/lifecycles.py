# SPDX-License-Identifier: Apache-2.0
"""Instances that are made and deleted here: their rows, from the first moment to the last.

One that was asked for exists before a host has it, and stays when making it failed, in
error, until somebody deletes it. What the end of such a job means for its instance is
written in the transaction that ends the job (`settle`).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from api_service.errors import OverQuota
from api_service.store import job_rows, records
from api_service.store.engine import Database, retried
from api_service.store.models import InstanceRow, JobRow, ProjectRow
from api_service.store.records import Instance, Job, NewJob
from common import clock
from common.errors import InstanceNotFound
from common.states import JobKind, JobState, PowerState, TaskState, VmState

#: Of an instance's record, what its row calls by another name.
_RENAMED = {"metadata": "user_metadata"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How many instances a project wants at once."""

    project_id: str
    least: int = 1
    most: int = 1

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


class Lifecycles:
    """Enters instances and the jobs that make or end them; thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    def enter(
        self, wanted: Wanted, make: Callable[[int], list[NewJob]], most_instances: int | None = None
    ) -> list[Job]:
        """Record new instances and the jobs that make them, all or none: what `make` returns.

        It is told how many there may be of what is wanted. Raises OverQuota, in Nova's
        words, if the project may have `most_instances` and that leaves too few.
        """
        with self._database.write() as session:
            count = wanted.most
            if most_instances is not None:
                count = _allowed(session, wanted, most_instances)
            news = make(count)
            session.add_all([_row_of(new) for new in news])
            return [_added(session, new) for new in news]

    @retried
    def enter_job(self, new: NewJob) -> Job:
        """Record a job whose instance nobody is to see."""
        with self._database.write() as session:
            return _added(session, new)

    @retried
    def take_for_deletion(self, new: NewJob) -> Job | None:
        """Record a deletion, and take the instance from whatever job held it.

        None if it is being deleted already. Raises InstanceNotFound.
        """
        is_free = or_(
            InstanceRow.task_state.is_(None), InstanceRow.task_state != str(TaskState.DELETING)
        )
        held = {"task_state": new.task_state, "job_id": new.id, "progress": 0}
        with self._database.write() as session:
            there = and_(InstanceRow.uuid == new.instance.uuid, InstanceRow.deleted_at.is_(None))
            taken = session.execute(
                update(InstanceRow).where(there, is_free).values(**held, updated_at=clock.now())
            )
            if taken.rowcount == 1:  # type: ignore[attr-defined]
                return _added(session, new)
            if session.scalar(select(InstanceRow.uuid).where(there)) is None:
                raise InstanceNotFound(f"Instance {new.instance.uuid} could not be found.")
            return None


def settle(session: Session, job: JobRow, state: JobState) -> None:
    """Write what the end of a job means for an instance that it was to make or to end."""
    change = _ENDS.get((JobKind(job.kind), state))
    if change is None:
        return
    now: dt.datetime = clock.now()
    where = [
        InstanceRow.uuid == job.instance_uuid,
        InstanceRow.deleted_at.is_(None),
        # Whoever holds it now has the say.
        InstanceRow.job_id.is_(None),
    ]
    if job.kind == JobKind.CREATE:
        where += [InstanceRow.made_here.is_(True), InstanceRow.launched_at.is_(None)]
    # No report from before this moment counts any more.
    values = {**change(job, now), "reported_at": now, "updated_at": now}
    session.execute(update(InstanceRow).where(*where).values(**values))


def _created(job: JobRow, now: dt.datetime) -> dict[str, Any]:
    return {
        "host": job.host,
        "vm_state": str(VmState.ACTIVE),
        "power_state": int(PowerState.RUNNING),
        "launched_at": now,
        "in_error": False,
        "fault": None,
    }


def _not_created(job: JobRow, _now: dt.datetime) -> dict[str, Any]:
    return {
        # None has it.
        "host": "",
        "vm_state": str(VmState.ERROR),
        "power_state": int(PowerState.NOSTATE),
        "in_error": True,
        "fault": job.reason,
    }


def _deleted(_job: JobRow, now: dt.datetime) -> dict[str, Any]:
    return {"deleted_at": now}


_ENDS: dict[tuple[JobKind, JobState], Callable[[JobRow, dt.datetime], dict[str, Any]]] = {
    (JobKind.CREATE, JobState.DONE): _created,
    (JobKind.CREATE, JobState.ERROR): _not_created,
    (JobKind.CREATE, JobState.CANCELLED): _not_created,
    (JobKind.DELETE, JobState.DONE): _deleted,
}


def _added(session: Session, new: NewJob) -> Job:
    row = job_rows.new_row(new)
    session.add(row)
    session.flush()
    return records.job(row)


def _row_of(new: NewJob) -> InstanceRow:
    instance = new.instance
    values = {
        _RENAMED.get(field.name, field.name): getattr(instance, field.name)
        for field in dataclasses.fields(Instance)
    }
    return InstanceRow(
        **{
            **values,
            "flavor": instance.flavor.to_wire(),
            "power_state": int(instance.power_state),
            "vm_state": str(instance.vm_state),
            "task_state": new.task_state,
            "job_id": new.id,
            "reported_at": instance.created_at,
        }
    )


def _allowed(session: Session, wanted: Wanted, most: int) -> int:
    """Return how many more a project gets, or raise OverQuota; it is counted by one at a time."""
    if session.get(ProjectRow, wanted.project_id, with_for_update=True) is None:
        session.add(ProjectRow(id=wanted.project_id))
        # Another may add it first: DBDuplicateEntry, and the whole is done anew.
        session.flush()
    mine = (InstanceRow.project_id == wanted.project_id, InstanceRow.deleted_at.is_(None))
    has = session.scalar(select(func.count()).select_from(InstanceRow).where(*mine)) or 0
    if has + wanted.least > most:
        raise OverQuota(
            f"Quota exceeded for instances: Requested {wanted}, "
            f"but already used {has} of {most} instances"
        )
    return min(wanted.most, most - has)
