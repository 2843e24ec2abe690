# SPDX-License-Identifier: Apache-2.0
"""Which jobs there are: the ledger's lists, page by page, and how many a project has open."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from api_service.errors import OverQuota
from api_service.store.models import JobRow, ProjectRow
from api_service.store.records import NewJob
from common.states import OPEN, POWER_KINDS, JobKind, JobState

#: What the quota counts: a server can be stopped whatever else waits.
_COUNTED = frozenset(JobKind) - POWER_KINDS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """What a list of jobs is narrowed down by; None (or empty) narrows nothing."""

    project_id: str | None = None
    instance_uuid: str | None = None
    host: str | None = None
    states: tuple[JobState, ...] = ()
    kinds: tuple[JobKind, ...] = ()
    #: From this time on, and before that one.
    created_since: dt.datetime | None = None
    created_before: dt.datetime | None = None
    #: The last job of the page before.
    marker: str | None = None
    limit: int = 1000


def page(session: Session, query: JobQuery) -> list[JobRow]:
    """Return one page of jobs, newest first."""
    statement = select(JobRow).where(*_conditions(query))
    marker = session.get(JobRow, query.marker) if query.marker else None
    if marker is not None:
        # In this form an index leads to the page, however far down it is.
        statement = statement.where(
            JobRow.created_at <= marker.created_at,
            or_(JobRow.created_at < marker.created_at, JobRow.id < marker.id),
        )
    ordered = statement.order_by(JobRow.created_at.desc(), JobRow.id.desc())
    return list(session.scalars(ordered.limit(query.limit)))


def require_room(session: Session, new: NewJob) -> None:
    """Raise OverQuota if the project has as many jobs open as it may.

    Whoever asks for the same project at the same time waits until this
    transaction has ended: of two that want the last place one gets it.
    """
    if new.max_open is None:
        return
    project_id = new.instance.project_id
    if session.get(ProjectRow, project_id, with_for_update=True) is None:
        session.add(ProjectRow(id=project_id))
        # Another may add it first: DBDuplicateEntry, and the whole is done anew.
        session.flush()
    held = select(func.count()).where(
        JobRow.project_id == project_id, JobRow.state.in_(OPEN), JobRow.kind.in_(_COUNTED)
    )
    if session.scalar(held) >= new.max_open:  # type: ignore[operator] # a count is a number
        raise OverQuota(
            f"Quota exceeded for jobs: the project may have {new.max_open} at work or waiting. "
            "Ask again when one of them has ended."
        )


def _conditions(query: JobQuery) -> list[ColumnElement[bool]]:
    wanted: list[tuple[Any, Callable[[Any], Any]]] = [
        (query.project_id, JobRow.project_id.__eq__),
        (query.instance_uuid, JobRow.instance_uuid.__eq__),
        (query.host, JobRow.host.__eq__),
        (query.states or None, JobRow.state.in_),
        (query.kinds or None, JobRow.kind.in_),
        (query.created_since, JobRow.created_at.__ge__),
        (query.created_before, JobRow.created_at.__lt__),
    ]
    return [condition(value) for value, condition in wanted if value is not None]
