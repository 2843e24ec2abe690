# SPDX-License-Identifier: Apache-2.0
"""Which instances there are: filters, orders, and pages that begin after a marker."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from api_service.store.models import InstanceRow

#: Where its user told none, as far as a list is concerned the name is it.
_HOSTNAME = func.coalesce(InstanceRow.hostname, InstanceRow.name)

#: What may be sorted by. Databases differ in where they put nothing: here it comes first.
SORTABLE: Mapping[str, ColumnElement[Any]] = {
    "access_ip_v4": func.coalesce(InstanceRow.access_ip_v4, ""),
    "access_ip_v6": func.coalesce(InstanceRow.access_ip_v6, ""),
    "created_at": InstanceRow.created_at.expression,
    # Of what exists, when it was created: MariaDB takes no written-out time here.
    "deleted_at": func.coalesce(InstanceRow.deleted_at, InstanceRow.created_at),
    "description": func.coalesce(InstanceRow.description, ""),
    "host": InstanceRow.host.expression,
    "hostname": _HOSTNAME,
    "image_ref": func.coalesce(InstanceRow.image_ref, ""),
    "launch_index": InstanceRow.launch_index.expression,
    "locked_by": func.coalesce(InstanceRow.locked_by, ""),
    "name": InstanceRow.name.expression,
    "power_state": InstanceRow.power_state.expression,
    "progress": InstanceRow.progress.expression,
    "project_id": InstanceRow.project_id.expression,
    "root_device_name": func.coalesce(InstanceRow.root_device_name, ""),
    "task_state": func.coalesce(InstanceRow.task_state, ""),
    "updated_at": InstanceRow.updated_at.expression,
    "user_id": InstanceRow.user_id.expression,
    "uuid": InstanceRow.uuid.expression,
    "vm_state": InstanceRow.vm_state.expression,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One thing that a list is sorted by: a key of SORTABLE."""

    key: str
    ascending: bool = False


NEWEST_FIRST = (Order(key="created_at"), Order(key="uuid"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InstanceQuery:
    """What a list of instances is narrowed down by; None (or empty) narrows nothing."""

    project_id: str | None = None
    #: Fields of an instance, and the value that each must have.
    exactly: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    #: Fields of an instance, and the second that each must lie in.
    at: Mapping[str, dt.datetime] = dataclasses.field(default_factory=dict)
    #: Fields and regular expressions that `engine.compiled` takes, in the database's own dialect.
    patterns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    flavor: str | None = None
    #: One of these vm states or one of these task states.
    vm_states: tuple[str, ...] = ()
    task_states: tuple[str, ...] = ()
    uuids: tuple[str, ...] = ()
    locked: bool | None = None
    #: Those that exist (False), that were deleted (True), or both (None).
    deleted: bool | None = False
    changed_since: dt.datetime | None = None
    #: Up to this time, and at it.
    changed_before: dt.datetime | None = None
    #: Ends in what no two instances have in common.
    order: tuple[Order, ...] = NEWEST_FIRST
    #: The last instance of the page before.
    marker: str | None = None
    limit: int = 1000


def page(session: Session, query: InstanceQuery) -> list[InstanceRow]:
    """Return one page of instances."""
    statement = select(InstanceRow).where(*_conditions(query))
    if query.marker is not None:
        columns = [SORTABLE[order.key] for order in query.order]
        last = session.execute(select(*columns).where(InstanceRow.uuid == query.marker)).first()
        if last is not None:
            statement = statement.where(_after(query.order, tuple(last)))
    ordered = statement.order_by(
        *(
            SORTABLE[order.key].asc() if order.ascending else SORTABLE[order.key].desc()
            for order in query.order
        )
    )
    return list(session.scalars(ordered.limit(query.limit)))


def _conditions(query: InstanceQuery) -> list[ColumnElement[bool]]:
    found = [column == value for column, value in _equal(query) if value is not None]
    if query.deleted is not None:
        is_there = InstanceRow.deleted_at.is_(None)
        found.append(~is_there if query.deleted else is_there)
    if query.vm_states or query.task_states:
        vm_state = InstanceRow.vm_state.in_(query.vm_states)
        found.append(or_(vm_state, InstanceRow.task_state.in_(query.task_states)))
    if query.uuids:
        found.append(InstanceRow.uuid.in_(query.uuids))
    if query.changed_since is not None:
        found.append(InstanceRow.updated_at >= query.changed_since)
    if query.changed_before is not None:
        found.append(InstanceRow.updated_at <= query.changed_before)
    patterns, times = query.patterns.items(), query.at.items()
    found += [_text(name).regexp_match(pattern) for name, pattern in patterns]
    return found + [_within_second(getattr(InstanceRow, name), time) for name, time in times]


def _equal(query: InstanceQuery) -> list[tuple[ColumnElement[Any], object]]:
    return [
        (InstanceRow.project_id.expression, query.project_id),
        (InstanceRow.flavor["name"].as_string(), query.flavor),
        (InstanceRow.locked_by.is_not(None), query.locked),
        *((getattr(InstanceRow, name), value) for name, value in query.exactly.items()),
    ]


def _text(name: str) -> ColumnElement[Any]:
    column: ColumnElement[Any] = getattr(InstanceRow, name)
    return _HOSTNAME if name == "hostname" else column


def _within_second(column: Any, time: dt.datetime) -> ColumnElement[bool]:
    return and_(column >= time, column < time + dt.timedelta(seconds=1))


def _after(orders: tuple[Order, ...], last: tuple[Any, ...]) -> ColumnElement[bool]:
    """Return what holds for what comes behind the last of the page before.

    The first thing is bounded by itself, too: an index then leads to the page,
    however far down it is.
    """
    first, *others = zip(orders, last, strict=True)
    if not others:
        return _behind(*first)
    rest = tuple(order for order, _ in others)
    deeper = _after(rest, tuple(value for _, value in others))
    return and_(_not_before(*first), or_(_behind(*first), deeper))


def _behind(order: Order, value: Any) -> ColumnElement[bool]:
    column: ColumnElement[Any] = SORTABLE[order.key]
    found: ColumnElement[bool] = column > value if order.ascending else column < value
    return found


def _not_before(order: Order, value: Any) -> ColumnElement[bool]:
    column: ColumnElement[Any] = SORTABLE[order.key]
    found: ColumnElement[bool] = column >= value if order.ascending else column <= value
    return found
