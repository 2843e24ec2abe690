# SPDX-License-Identifier: Apache-2.0
"""Agents and instances, as the heartbeats tell.

An agent's complete list replaces what was known of its host; the newest report
wins where two hosts announce one instance (it has moved). What a job holds of
an instance is never touched here.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from api_service.store import records
from api_service.store.engine import Database
from api_service.store.models import AgentRow, InstanceRow
from api_service.store.records import Agent, Instance
from common import clock
from common.messages import HostReport, InstanceRecord
from common.states import VM_STATE_OF_POWER_STATE, PowerState


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InstanceQuery:
    """What a list of instances is narrowed down by; None (or empty) narrows nothing."""

    project_id: str | None = None
    host: str | None = None
    #: A regular expression, in the database's own dialect.
    name_pattern: str | None = None
    vm_states: tuple[str, ...] = ()
    uuids: tuple[str, ...] = ()
    #: The last instance of the page before.
    marker: str | None = None
    limit: int = 1000


class Inventory:
    """What runs where; thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, report: HostReport) -> bool:
        """Take a heartbeat; return whether its agent was unknown before."""
        with self._database.write() as session:
            is_new = _take_agent(session, report)
            if report.instances is not None:
                at = clock.from_epoch(report.at)
                # In one order everywhere, so that two hosts never wait for each other's rows.
                for announced in sorted(report.instances, key=lambda one: one.uuid):
                    _take_instance(session, report.host, at, announced)
                _bury_missing(session, report)
            return is_new

    def agent(self, host: str) -> Agent | None:
        """Return an agent."""
        with self._database.read() as session:
            row = session.get(AgentRow, host)
            return records.agent(row) if row else None

    def agents(self) -> list[Agent]:
        """Return every agent ever seen, by host."""
        with self._database.read() as session:
            rows = session.scalars(select(AgentRow).order_by(AgentRow.host))
            return [records.agent(row) for row in rows]

    def instance(self, instance_uuid: str) -> Instance | None:
        """Return an instance that exists."""
        with self._database.read() as session:
            row = session.get(InstanceRow, instance_uuid)
            return records.instance(row) if row and row.deleted_at is None else None

    def instances(self, query: InstanceQuery) -> list[Instance]:
        """Return instances that exist, newest first, one page of them."""
        with self._database.read() as session:
            statement = select(InstanceRow).where(*_conditions(query))
            marker = session.get(InstanceRow, query.marker) if query.marker else None
            if marker is not None:
                statement = statement.where(_after(marker))
            ordered = statement.order_by(InstanceRow.created_at.desc(), InstanceRow.uuid.desc())
            rows = session.scalars(ordered.limit(query.limit))
            return [records.instance(row) for row in rows]


def _conditions(query: InstanceQuery) -> list[ColumnElement[bool]]:
    wanted: list[tuple[bool, ColumnElement[bool]]] = [
        (True, InstanceRow.deleted_at.is_(None)),
        (query.project_id is not None, InstanceRow.project_id == query.project_id),
        (query.host is not None, InstanceRow.host == query.host),
        (
            query.name_pattern is not None,
            InstanceRow.name.regexp_match(query.name_pattern or ""),
        ),
        (bool(query.vm_states), InstanceRow.vm_state.in_(query.vm_states)),
        (bool(query.uuids), InstanceRow.uuid.in_(query.uuids)),
    ]
    return [condition for applies, condition in wanted if applies]


def _after(marker: InstanceRow) -> ColumnElement[bool]:
    return or_(
        InstanceRow.created_at < marker.created_at,
        and_(InstanceRow.created_at == marker.created_at, InstanceRow.uuid < marker.uuid),
    )


def _take_agent(session: Session, report: HostReport) -> bool:
    row, now = session.get(AgentRow, report.host), clock.now()
    is_new = row is None
    if row is None:
        row = AgentRow(host=report.host, first_seen_at=now, hypervisor=None)
        session.add(row)
    row.release, row.rpc_version = report.release, report.rpc_version
    row.started_at = clock.from_epoch(report.started_at)
    # When it was sent, not when it came: heartbeats that waited while the API was
    # stopped say nothing of now. A clock that runs ahead must not count for more.
    sent_at = min(now, clock.from_epoch(report.at))
    row.last_seen_at = sent_at if is_new else max(row.last_seen_at, sent_at)
    if report.hypervisor is not None:
        row.hypervisor = report.hypervisor.to_wire()
    return is_new


def _take_instance(session: Session, host: str, at: dt.datetime, announced: InstanceRecord) -> None:
    values: dict[str, Any] = {
        "host": host,
        "name": announced.name,
        "domain_name": announced.domain_name,
        "project_id": announced.project_id,
        "user_id": announced.user_id,
        "flavor": announced.flavor.to_wire(),
        "image_ref": announced.image_ref,
        "image_properties": dict(announced.image_properties),
        "root_device_name": announced.root_device_name,
        "power_state": int(announced.power_state),
        "vm_state": str(VM_STATE_OF_POWER_STATE[announced.power_state]),
        "deleted_at": None,
    }
    now: dt.datetime = clock.now()
    row = session.get(InstanceRow, announced.uuid, with_for_update=True)
    if row is None:
        created = clock.from_epoch(announced.created_at) if announced.created_at else now
        session.add(
            InstanceRow(
                uuid=announced.uuid,
                created_at=created,
                updated_at=now,
                reported_at=at,
                progress=0,
                **values,
            )
        )
        return
    if at < row.reported_at:
        return  # a newer report overtook this one
    if _is_paused_by_job(row, announced):
        del values["power_state"], values["vm_state"]
    row.reported_at = at
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    if changed:
        row.updated_at = now


def _is_paused_by_job(row: InstanceRow, announced: InstanceRecord) -> bool:
    """Tell whether a pause is that of a capture: milliseconds, not to be shown for a minute."""
    was_running = row.power_state == PowerState.RUNNING
    return row.job_id is not None and was_running and announced.power_state is PowerState.PAUSED


def _bury_missing(session: Session, report: HostReport) -> None:
    present = [announced.uuid for announced in report.instances or ()]
    at, now = clock.from_epoch(report.at), clock.now()
    session.flush()
    session.execute(
        update(InstanceRow)
        .where(
            InstanceRow.host == report.host,
            InstanceRow.deleted_at.is_(None),
            InstanceRow.reported_at <= at,
            InstanceRow.uuid.not_in(present),
        )
        .values(deleted_at=now, updated_at=now, reported_at=at)
    )
