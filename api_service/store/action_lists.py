# SPDX-License-Identifier: Apache-2.0
"""What was done to an instance: its jobs, found by the request that asked for each."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from api_service.store.models import JobRow

#: Jobs that no request of this API asked for are found by this and their own id.
REQUEST_PREFIX = "req-"
#: When something was last heard of a job.
_UPDATED_AT = func.coalesce(JobRow.finished_at, JobRow.reported_at, JobRow.created_at)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ActionQuery:
    """What a list of an instance's actions is narrowed down by; None narrows nothing."""

    instance_uuid: str
    changed_since: dt.datetime | None = None
    #: Up to this time, and at it.
    changed_before: dt.datetime | None = None
    #: The job of the last action of the page before.
    marker: str | None = None
    limit: int = 1000


def page(session: Session, query: ActionQuery) -> list[JobRow]:
    """Return one page of jobs, newest first."""
    statement = select(JobRow).where(JobRow.instance_uuid == query.instance_uuid)
    if query.changed_since is not None:
        statement = statement.where(query.changed_since <= _UPDATED_AT)
    if query.changed_before is not None:
        statement = statement.where(query.changed_before >= _UPDATED_AT)
    marker = session.get(JobRow, query.marker) if query.marker else None
    if marker is not None:
        statement = statement.where(
            JobRow.created_at <= marker.created_at,
            or_(JobRow.created_at < marker.created_at, JobRow.id < marker.id),
        )
    ordered = statement.order_by(JobRow.created_at.desc(), JobRow.id.desc())
    return list(session.scalars(ordered.limit(query.limit)))


def of_request(session: Session, instance_uuid: str, request_id: str) -> JobRow | None:
    """Return the job of an instance that a request asked for."""
    mine = (JobRow.instance_uuid == instance_uuid, _asked_by(request_id))
    return session.scalars(select(JobRow).where(*mine).limit(1)).first()


def _asked_by(request_id: str) -> ColumnElement[Any]:
    return or_(
        JobRow.context["request_id"].as_string() == request_id,
        JobRow.id == request_id.removeprefix(REQUEST_PREFIX),
    )
