# SPDX-License-Identifier: Apache-2.0
"""Backup policies, and the planning of their runs: what is due is planned once."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable

from sqlalchemy import bindparam, delete, func, or_, select, update
from sqlalchemy.orm import Session

from api_service.errors import OverQuota
from api_service.store import policy_rows
from api_service.store.engine import Database, retried
from api_service.store.models import ProjectRow
from api_service.store.policy_records import Policy, Run
from api_service.store.policy_rows import PolicyRow, RunRow
from api_service.store.readable import readable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyQuery:
    """What a list of policies is narrowed down by; None narrows nothing."""

    project_id: str | None = None
    #: The last policy of the page before.
    marker: str | None = None
    limit: int = 1000


class Policies:
    """The policies of the cloud; thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retried
    def add(self, policy: Policy, most: int | None = None) -> None:
        """Enter a policy; raise OverQuota if its project has `most` (None: any number)."""
        with self._database.write() as session:
            _require_room(session, policy.project_id, most)
            session.add(PolicyRow(**policy_rows.values_of(policy)))

    @retried
    def change(self, policy_id: str, change: Callable[[Policy], Policy]) -> Policy | None:
        """Have `change` make the new policy of the old, or raise; None: it is gone."""
        with self._database.write() as session:
            row = session.get(PolicyRow, policy_id, with_for_update=True)
            if row is None:
                return None
            changed = change(policy_rows.policy(row))
            for name, value in policy_rows.values_of(changed).items():
                setattr(row, name, value)
            return changed

    @retried
    def remove(self, policy_id: str) -> bool:
        """Forget a policy and its runs; False: it is gone already."""
        with self._database.write() as session:
            found = session.execute(delete(PolicyRow).where(PolicyRow.id == policy_id))
            session.execute(delete(RunRow).where(RunRow.policy_id == policy_id))
            return bool(found.rowcount)  # type: ignore[attr-defined]

    def find(self, policy_id: str) -> Policy | None:
        """Return a policy."""
        with self._database.read() as session:
            row = session.get(PolicyRow, policy_id)
            return policy_rows.policy(row) if row else None

    def find_readable(self, policy_id: str) -> Policy | None:
        """Return a policy; None also if it cannot be read, which is told of once."""
        with self._database.read() as session:
            row = session.get(PolicyRow, policy_id)
            found = readable("Policy", [row] if row else [], policy_rows.policy)
            return found[0] if found else None

    def page(self, query: PolicyQuery) -> list[Policy]:
        """Return one page of policies, newest first."""
        statement = select(PolicyRow)
        if query.project_id is not None:
            statement = statement.where(PolicyRow.project_id == query.project_id)
        with self._database.read() as session:
            marker = session.get(PolicyRow, query.marker) if query.marker else None
            if marker is not None:
                statement = statement.where(
                    PolicyRow.created_at <= marker.created_at,
                    or_(PolicyRow.created_at < marker.created_at, PolicyRow.id < marker.id),
                )
            ordered = statement.order_by(PolicyRow.created_at.desc(), PolicyRow.id.desc())
            return [policy_rows.policy(row) for row in session.scalars(ordered.limit(query.limit))]

    def due(self, now: dt.datetime) -> list[Policy]:
        """Return the policies whose time has come, those that can be read."""
        query = select(PolicyRow).where(PolicyRow.next_due_at <= now)
        with self._database.read() as session:
            rows = session.scalars(query.order_by(PolicyRow.next_due_at))
            return readable("Policy", rows, policy_rows.policy)

    @retried
    def plan(self, policy: Policy, next_due_at: dt.datetime | None, runs: Iterable[Run]) -> bool:
        """Enter the runs of a policy that is due, and when it is due next.

        False, and nothing is entered: another process did so, or the policy was changed.
        What was entered before stays as it is: our clock may have been put back.
        """
        as_seen = (
            PolicyRow.id == policy.id,
            PolicyRow.next_due_at == policy.next_due_at,
            PolicyRow.updated_at == policy.updated_at,
        )
        with self._database.write() as session:
            moved = update(PolicyRow).where(*as_seen).values(next_due_at=next_due_at)
            if not session.execute(moved).rowcount:  # type: ignore[attr-defined]
                return False
            for run in runs:
                once = (run.policy_id, run.instance_uuid, run.due_at)
                if not session.scalar(_KNOWN, dict(zip(_ONCE, once, strict=True))):
                    session.add(policy_rows.run_row(run))
            return True


_ONCE = ("policy_id", "instance_uuid", "due_at")
_KNOWN = select(func.count()).where(*(getattr(RunRow, name) == bindparam(name) for name in _ONCE))


def _require_room(session: Session, project_id: str, most: int | None) -> None:
    """Raise OverQuota; whoever asks for the same project at the same time waits."""
    if most is None:
        return
    if session.get(ProjectRow, project_id, with_for_update=True) is None:
        session.add(ProjectRow(id=project_id))
        # Another may add it first: DBDuplicateEntry, and the whole is done anew.
        session.flush()
    held = select(func.count()).where(PolicyRow.project_id == project_id)
    if (session.scalar(held) or 0) >= most:
        raise OverQuota(
            f"Quota exceeded for policies: the project may have {most}. Delete one of them first."
        )
