# SPDX-License-Identifier: Apache-2.0
"""What people set on an instance by themselves: its lock, and whether it counts as broken."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update

from api_service.store.engine import Database, retried
from api_service.store.models import InstanceRow
from common import clock
from common.states import VM_STATE_OF_POWER_STATE, LockedBy, PowerState, VmState


class Overrides:
    """Writes them; thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
