# SPDX-License-Identifier: Apache-2.0
"""What people set on an instance by themselves: name, metadata, lock, whether it is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import update

from api_service.store.engine import Database, retried
from api_service.store.models import InstanceRow
from common import clock
from common.errors import InstanceNotFound
from common.states import VM_STATE_OF_POWER_STATE, LockedBy, PowerState, VmState


class Overrides:
    """Writes them; thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self, instance_uuid: str, changes: Mapping[str, str | None]) -> None:
        """Set fields of an instance; a name given once is not its host's to change any more."""
        values: dict[str, Any] = dict(changes)
        if "name" in changes:
            values["renamed"] = True
        self._set(instance_uuid, **values)

    @retried
    def change_metadata(
        self, instance_uuid: str, change: Callable[[dict[str, str]], dict[str, str]]
    ) -> dict[str, str]:
        """Have `change` make the new metadata of the old, or raise; return the new."""
        with self._database.write() as session:
            row = session.get(InstanceRow, instance_uuid, with_for_update=True)
            if row is None or row.deleted_at is not None:
                raise InstanceNotFound(f"Instance {instance_uuid} could not be found.")
            changed = change(dict(row.user_metadata or {}))
            row.user_metadata, row.updated_at = changed, clock.now()
            return changed

    def lock(self, instance_uuid: str, *, by: LockedBy, reason: str | None) -> None:
        """Lock an instance."""
        self._set(instance_uuid, locked_by=str(by), locked_reason=reason)

    def unlock(self, instance_uuid: str) -> None:
        """Unlock it."""
        self._set(instance_uuid, locked_by=None, locked_reason=None)

    @retried
    def reset(self, instance_uuid: str, *, in_error: bool) -> str | None:
        """Free an instance from what holds it, and have it count as broken or not.

        Returns the job that held it; that goes on until somebody cancels it.
        """
        with self._database.write() as session:
            row = session.get(InstanceRow, instance_uuid, with_for_update=True)
            if row is None:
                return None
            held_by, row.job_id = row.job_id, None
            row.task_state, row.progress, row.in_error = None, 0, in_error
            told = VM_STATE_OF_POWER_STATE[PowerState(row.power_state)]
            row.vm_state = str(VmState.ERROR if in_error else told)
            row.updated_at = clock.now()
            return held_by

    @retried
    def _set(self, instance_uuid: str, **values: Any) -> None:
        changed = {**values, "updated_at": clock.now()}
        with self._database.write() as session:
            session.execute(
                update(InstanceRow).where(InstanceRow.uuid == instance_uuid).values(**changed)
            )
