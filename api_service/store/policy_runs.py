# SPDX-License-Identifier: Apache-2.0
"""The runs of backup policies, and the backups that came of them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from api_service.store import policy_rows, records
from api_service.store.engine import Database, retried
from api_service.store.models import JobRow
from api_service.store.policy_records import OPEN_RUNS, Backup, Proof, Run, RunState
from api_service.store.policy_rows import RunRow
from api_service.store.readable import readable
from api_service.store.records import Job
from common import clock
from common.states import IMAGE_KINDS, OPEN, JobState


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """What a list of a policy's runs is narrowed down by; empty narrows nothing."""

    policy_id: str
    instance_uuid: str | None = None
    states: tuple[RunState, ...] = ()
    #: The last run of the page before.
    marker: str | None = None
    limit: int = 1000


class PolicyRuns:
    """The runs of the cloud; thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    def add(self, runs: Iterable[Run]) -> None:
        """Enter runs that somebody asked for."""
        with self._database.write() as session:
            session.add_all(policy_rows.run_row(run) for run in runs)

    def find(self, run_id: str) -> Run | None:
        """Return a run."""
        with self._database.read() as session:
            row = session.get(RunRow, run_id)
            return policy_rows.run(row) if row else None

    def page(self, query: RunQuery) -> list[Run]:
        """Return one page of a policy's runs, newest first."""
        statement = select(RunRow).where(RunRow.policy_id == query.policy_id)
        if query.states:
            statement = statement.where(RunRow.state.in_(query.states))
        if query.instance_uuid is not None:
            statement = statement.where(RunRow.instance_uuid == query.instance_uuid)
        with self._database.read() as session:
            marker = session.get(RunRow, query.marker) if query.marker else None
            if marker is not None:
                statement = statement.where(
                    RunRow.due_at <= marker.due_at,
                    or_(RunRow.due_at < marker.due_at, RunRow.id < marker.id),
                )
            ordered = statement.order_by(RunRow.due_at.desc(), RunRow.id.desc())
            return [policy_rows.run(row) for row in session.scalars(ordered.limit(query.limit))]

    def waited_for(self, policy_id: str) -> set[str]:
        """Return the instances that runs which somebody asked for wait for."""
        query = select(RunRow.instance_uuid).where(
            RunRow.policy_id == policy_id,
            RunRow.state == RunState.WAITING,
            RunRow.manual.is_(True),
        )
        with self._database.read() as session:
            return set(session.scalars(query))

    def open(self, now: dt.datetime) -> list[Run]:
        """Return what has to be looked at now and can be read, in the order in which it begins."""
        query = select(RunRow).where(
            RunRow.state.in_(OPEN_RUNS),
            RunRow.start_at <= now,
            or_(RunRow.retry_at.is_(None), RunRow.retry_at <= now),
        )
        with self._database.read() as session:
            rows = session.scalars(query.order_by(RunRow.start_at, RunRow.id))
            return readable("Run", rows, policy_rows.run)

    def at_work(self) -> Counter[str]:
        """Return how many backups of policies each host has at hand."""
        query = (
            select(JobRow.host, func.count())
            .where(JobRow.policy_id.is_not(None), JobRow.state.in_(OPEN))
            .group_by(JobRow.host)
        )
        with self._database.read() as session:
            return Counter({host: count for host, count in session.execute(query)})

    @retried
    def move(self, run: Run, state: RunState, **values: Any) -> bool:
        """Move a run from where it was seen; False: another process did, or it is gone."""
        ended = {} if state in OPEN_RUNS else {"finished_at": clock.now()}
        as_seen = (
            RunRow.id == run.id,
            RunRow.state == run.state,
            RunRow.attempts == run.attempts,
        )
        moved = update(RunRow).where(*as_seen).values(state=state, **values, **ended)
        with self._database.write() as session:
            return bool(session.execute(moved).rowcount)  # type: ignore[attr-defined]

    def newest_jobs(self, policy_id: str, instance_uuid: str, count: int) -> list[Job]:
        """Return the newest backups of an instance that a policy made, newest first."""
        with self._database.read() as session:
            query = _made(instance_uuid).where(JobRow.policy_id == policy_id)
            ordered = query.order_by(JobRow.created_at.desc(), JobRow.id.desc())
            return [records.job(row) for row in session.scalars(ordered.limit(count))]

    def backed_up(self, policy_id: str) -> list[str]:
        """Return the instances of which backups of a policy stand."""
        query = select(JobRow.instance_uuid).where(*_STANDS, JobRow.policy_id == policy_id)
        with self._database.read() as session:
            return sorted(session.scalars(query.distinct()))

    def backups(self, policy_id: str, instance_uuid: str) -> tuple[list[Backup], list[Backup]]:
        """Return the backups of an instance that a policy made, and the images of other jobs."""
        with self._database.read() as session:
            jobs = list(session.scalars(_made(instance_uuid)))
            runs = _runs(session, [row.id for row in jobs if row.policy_id == policy_id])
        own: list[Backup] = []
        others: list[Backup] = []
        for row in jobs:
            (own if row.policy_id == policy_id else others).append(_backup(row, runs.get(row.id)))
        return own, others

    @retried
    def forget(self, before: dt.datetime) -> int:
        """Forget the runs that ended before then and left no image; return how many."""
        stands = select(JobRow.id).where(*_STANDS, JobRow.policy_id.is_not(None))
        gone = delete(RunRow).where(
            RunRow.finished_at < before,
            or_(RunRow.job_id.is_(None), RunRow.job_id.not_in(stands)),
        )
        with self._database.write() as session:
            return int(session.execute(gone).rowcount)  # type: ignore[attr-defined]


#: Jobs whose images nobody has removed as far as we know.
_STANDS = (
    JobRow.state == JobState.DONE,
    JobRow.kind.in_(IMAGE_KINDS),
    JobRow.removed_at.is_(None),
)


def _made(instance_uuid: str) -> Any:
    return select(JobRow).where(*_STANDS, JobRow.instance_uuid == instance_uuid)


def _runs(session: Session, job_ids: Sequence[str]) -> dict[str, Run]:
    query = select(RunRow).where(RunRow.job_id.in_(job_ids))
    return {str(row.job_id): policy_rows.run(row) for row in session.scalars(query)}


def _backup(row: JobRow, run: Run | None) -> Backup:
    job = records.job(row)
    parents = (image.parent_image_id for image in job.images)
    return Backup(
        job_id=job.id,
        instance_uuid=job.instance_uuid,
        image_ids=tuple(dict.fromkeys((job.image_id, *(one.image_id for one in job.images)))),
        parent_ids=frozenset(parent for parent in parents if parent),
        at=run.counts_at if run else job.created_at,
        proof=_proof(run),
    )


def _proof(run: Run | None) -> Proof:
    """Return what a run says of its backup; without a run it is only just being asked for."""
    if run is None or run.state not in (RunState.PRUNING, RunState.DONE):
        return Proof.UNPROVEN
    return Proof.VERIFIED if run.verify_job_id else Proof.UNTRIED
