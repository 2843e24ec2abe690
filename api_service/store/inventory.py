# SPDX-License-Identifier: Apache-2.0
"""Agents and instances, as the heartbeats tell.

An agent's complete list replaces what was known of its host; the newest report
wins where two hosts announce one instance (it has moved). What a job holds of
an instance is never touched here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from oslo_db import exception as db_errors
from sqlalchemy import bindparam, delete, func, or_, select, update
from sqlalchemy.orm import Session

from api_service.errors import BadRequest, HostNameTaken
from api_service.store import action_lists, instance_lists, records
from api_service.store.action_lists import ActionQuery
from api_service.store.engine import Database, retried
from api_service.store.instance_lists import InstanceQuery
from api_service.store.models import AgentRow, InstanceRow
from api_service.store.records import Agent, Guest, Instance, Job
from common import clock
from common.reports import Flavor, HostReport, InstanceRecord
from common.states import VM_STATE_OF_POWER_STATE, PowerState, TaskState

#: What every request about an instance asks: made once, and read as it is, since objects that
#: could be changed take twice as long.
_ONE = select(*InstanceRow.__table__.columns).where(
    InstanceRow.uuid == bindparam("uuid"), InstanceRow.deleted_at.is_(None)
)
_DELETING = str(TaskState.DELETING)
#: How long a list of instances may occupy the database.
QUERY_MAX_S = 20


class Inventory:
    """What runs where; thread-safe."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @retried
    def take(self, report: HostReport, is_up: Callable[[Agent], bool] = lambda _: False) -> bool:
        """Take a heartbeat; return whether its agent was unknown before.

        Raises HostNameTaken if another agent reports under that host name and, by
        `is_up`, still lives.
        """
        at = _time_of(report)
        with self.database.write() as session:
            is_new = _take_agent(session, report, at, is_up)
            if report.instances is not None:
                known = _locked(session, [announced.uuid for announced in report.instances])
                for announced in sorted(report.instances, key=lambda one: one.uuid):
                    row = known.get(announced.uuid)
                    known[announced.uuid] = _take_instance(session, report.host, at, announced, row)
                _bury_missing(session, report, at)
            return is_new

    def agent(self, host: str) -> Agent | None:
        """Return an agent."""
        with self.database.read() as session:
            row = session.get(AgentRow, host)
            return records.agent(row) if row else None

    def agents(self) -> list[Agent]:
        """Return every agent ever seen, by host."""
        with self.database.read() as session:
            rows = session.scalars(select(AgentRow).order_by(AgentRow.host))
            return [records.agent(row) for row in rows]

    @retried
    def forget_host(self, host: str) -> int:
        """Remove an agent, and hold what was on its host for deleted; return how much that was."""
        with self.database.write() as session:
            now = clock.now()
            here = (InstanceRow.host == host, InstanceRow.deleted_at.is_(None))
            found = session.scalars(select(InstanceRow).where(*here).with_for_update()).all()
            for row in found:
                row.deleted_at = row.updated_at = row.reported_at = now
            session.execute(delete(AgentRow).where(AgentRow.host == host))
            return len(found)

    def instance(self, instance_uuid: str) -> Instance | None:
        """Return an instance that exists."""
        with self.database.engine.connect() as connection:
            row = connection.execute(_ONE, {"uuid": instance_uuid}).one_or_none()
            return records.instance(row) if row else None

    def past_instance(self, instance_uuid: str) -> Instance | None:
        """Return an instance that exists, or did."""
        with self.database.read() as session:
            row = session.get(InstanceRow, instance_uuid)
            return records.instance(row) if row else None

    def instances(self, query: InstanceQuery) -> list[Instance]:
        """Return one page of instances.

        Raises BadRequest if the database has another opinion of the pattern, or
        cannot match it in time (MariaDB's matcher goes back and tries again).
        """
        try:
            return self._instances(query)
        except db_errors.DBConnectionError:
            raise
        except db_errors.DBError as error:
            if not query.patterns:
                raise
            raise BadRequest("The database cannot match by that expression.") from error

    def _instances(self, query: InstanceQuery) -> list[Instance]:
        with self.database.read_for(QUERY_MAX_S) as session:
            return [records.instance(row) for row in instance_lists.page(session, query)]

    def actions(self, query: ActionQuery) -> list[Job]:
        """Return one page of what was done to an instance, newest first."""
        with self.database.read() as session:
            return [records.job(row) for row in action_lists.page(session, query)]

    def action(self, instance_uuid: str, request_id: str) -> Job | None:
        """Return what a request did to an instance."""
        with self.database.read() as session:
            row = action_lists.of_request(session, instance_uuid, request_id)
            return records.job(row) if row else None

    def guests_by_host(self) -> dict[str, list[Guest]]:
        """Return what each host has, by name."""
        columns = (InstanceRow.host, InstanceRow.uuid, InstanceRow.name, InstanceRow.flavor)
        query = select(*columns).where(InstanceRow.deleted_at.is_(None))
        guests: dict[str, list[Guest]] = {}
        with self.database.read() as session:
            ordered = query.order_by(InstanceRow.name, InstanceRow.uuid)
            for host, uuid, name, flavor in session.execute(ordered):
                guest = Guest(uuid=uuid, name=name, flavor=Flavor.from_wire(flavor))
                guests.setdefault(host, []).append(guest)
        return guests

    def sizes_of_project(self, project_id: str) -> list[Flavor]:
        """Return the size of each instance of a project."""
        mine = (InstanceRow.project_id == project_id, InstanceRow.deleted_at.is_(None))
        with self.database.read() as session:
            found = session.scalars(select(InstanceRow.flavor).where(*mine))
            return [Flavor.from_wire(flavor) for flavor in found]

    def flavors(
        self, *, project_id: str | None, name: str | None = None, limit: int = 1000
    ) -> list[Flavor]:
        """Return the sizes of the instances that exist, one of each name, by name."""
        named = InstanceRow.flavor["name"].as_string()
        one_of_each = select(func.min(InstanceRow.uuid)).where(InstanceRow.deleted_at.is_(None))
        if project_id is not None:
            one_of_each = one_of_each.where(InstanceRow.project_id == project_id)
        if name is not None:
            one_of_each = one_of_each.where(named == name)
        one_of_each = one_of_each.group_by(named)
        query = select(InstanceRow.flavor).where(InstanceRow.uuid.in_(one_of_each))
        with self.database.read() as session:
            found = session.scalars(query.order_by(named).limit(limit))
            return [Flavor.from_wire(flavor) for flavor in found]


def _time_of(report: HostReport) -> dt.datetime:
    """Return when a report was sent, by our clock, as far as that can be told.

    When it was sent, not when it came: what waited while the API was stopped says
    nothing of now. A host whose clock runs ahead must not count for more, nor outdo
    what others say later of an instance that has moved; one whose clock is behind
    is no less alive, and of what expires it is known that it is fresh.
    """
    now: dt.datetime = clock.now()
    sent = min(now, clock.from_epoch(report.at))
    if report.expires_s is None:
        return sent
    return max(sent, now - dt.timedelta(seconds=report.expires_s))


def _take_agent(
    session: Session, report: HostReport, at: dt.datetime, is_up: Callable[[Agent], bool]
) -> bool:
    row = session.get(AgentRow, report.host, with_for_update=True)
    is_new = row is None
    if row is not None and _is_another(row, report) and is_up(records.agent(row)):
        raise HostNameTaken(
            f"another compute agent reports as host {report.host}; give this one a host of its "
            "own, or stop the other and wait until it counts as down"
        )
    if row is None:
        row = AgentRow(host=report.host, first_seen_at=clock.now(), hypervisor=None)
        session.add(row)
    row.agent_id = report.agent_id
    row.release, row.rpc_version = report.release, report.rpc_version
    row.started_at = clock.from_epoch(report.started_at)
    # What lies ahead of now was written before our own clock was put back.
    row.last_seen_at = at if is_new else min(max(row.last_seen_at, at), clock.now())
    row.clock_offset_s = report.at - clock.epoch_s() if report.expires_s else None
    if report.hypervisor is not None:
        row.hypervisor = report.hypervisor.to_wire()
    if report.instances is not None or report.open_jobs is not None:
        row.open_jobs = _open_jobs(row.open_jobs or [], report)
    return is_new


def _is_another(row: AgentRow, report: HostReport) -> bool:
    """Tell whether a report is not from the agent that is known; older ones have no id."""
    ids = {row.agent_id, report.agent_id}
    return None not in ids and len(ids) > 1


def _open_jobs(known: list[Any], report: HostReport) -> list[Any] | None:
    """Return the two newest complete lists; None if the agent sends none with its instances."""
    if report.open_jobs is None:
        return None
    if known and known[-1]["at"] == report.at:
        return known  # doubled
    taken = {"jobs": list(report.open_jobs), "at": report.at, "taken_at": clock.epoch_s()}
    # An older one was overtaken, or the host's clock was put back: begin anew.
    before = known[-1:] if known and known[-1]["at"] < report.at else []
    return [*before, taken]


def _locked(session: Session, uuids: list[str]) -> dict[str, InstanceRow]:
    """Return the rows that exist, locked, by uuid.

    In one order everywhere, so that two hosts never wait for each other's rows.
    """
    query = select(InstanceRow).where(InstanceRow.uuid.in_(uuids)).order_by(InstanceRow.uuid)
    return {row.uuid: row for row in session.scalars(query.with_for_update())}


def _take_instance(
    session: Session,
    host: str,
    at: dt.datetime,
    announced: InstanceRecord,
    row: InstanceRow | None,
) -> InstanceRow:
    """Take an instance's announcement into its row, if it has one; return the row."""
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
    if row is None:
        created = clock.from_epoch(announced.created_at) if announced.created_at else now
        row = InstanceRow(
            uuid=announced.uuid,
            created_at=created,
            updated_at=now,
            reported_at=at,
            progress=0,
            **values,
        )
        session.add(row)
        return row
    if at < row.reported_at <= now:
        return row  # a newer report overtook this one
    if row.made_here and row.launched_at is None and row.job_id is None:
        # The job that was to make it was given up, and yet here it is.
        row.launched_at, row.in_error, row.fault = now, False, None
    for name in _kept(row, announced):
        del values[name]
    row.reported_at = at
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    if changed:
        row.updated_at = now
    return row


def _kept(row: InstanceRow, announced: InstanceRecord) -> set[str]:
    """Return the fields of an instance that its host's word does not change now."""
    kept = {"name"} if row.renamed else set()
    if _is_paused_by_job(row, announced):
        return kept | {"power_state", "vm_state"}
    # What is being made is not there before its job says so.
    is_unlaunched = row.made_here and row.launched_at is None
    return kept | {"vm_state"} if row.in_error or is_unlaunched else kept


def _is_paused_by_job(row: InstanceRow, announced: InstanceRecord) -> bool:
    """Tell whether a pause is that of a capture: milliseconds, not to be shown for a minute."""
    was_running = row.power_state == PowerState.RUNNING
    return row.job_id is not None and was_running and announced.power_state is PowerState.PAUSED


def _bury_missing(session: Session, report: HostReport, at: dt.datetime) -> None:
    present, now = [announced.uuid for announced in report.instances or ()], clock.now()
    session.flush()
    session.execute(
        update(InstanceRow)
        .where(
            InstanceRow.host == report.host,
            InstanceRow.deleted_at.is_(None),
            or_(InstanceRow.reported_at <= at, InstanceRow.reported_at > now),
            InstanceRow.uuid.not_in(present),
            # What is still to be made there is not missing, and what is being deleted has
            # gone when its job says so: its disks go after its domain.
            or_(InstanceRow.made_here.is_(False), InstanceRow.launched_at.is_not(None)),
            or_(InstanceRow.task_state.is_(None), InstanceRow.task_state != _DELETING),
        )
        .values(deleted_at=now, updated_at=now, reported_at=at)
    )
