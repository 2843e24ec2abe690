# SPDX-License-Identifier: Apache-2.0
"""The use cases that change an instance's power, lock and state: no HTTP, no SQL.

A change of power is a job like a snapshot: recorded, cast, reported. A lock is
only ours to keep: the hypervisor knows nothing of it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import uuid
from typing import Any

from api_service.agents import Agents
from api_service.errors import Conflict
from api_service.store.ledger import Ledger
from api_service.store.overrides import Overrides
from api_service.store.records import Instance, Job, NewJob
from common import clock
from common.context import RequestContext
from common.states import FIRST_TASK_STATE, JobKind, LockedBy, TaskState, VmState

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of power that can be asked for: Nova's word, and when Nova takes it."""

    kind: JobKind
    action: str
    #: The policy's rule.
    rule: str
    vm_states: frozenset[VmState]
    task_state: TaskState
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def _change(kind: JobKind, rule: str, *vm_states: VmState) -> Change:
    return Change(
        kind=kind,
        action=str(kind),
        rule=f"os_compute_api:{rule}",
        vm_states=frozenset(vm_states),
        task_state=FIRST_TASK_STATE[kind],
    )


PAUSE = _change(JobKind.PAUSE, "os-pause-server:pause", VmState.ACTIVE)
UNPAUSE = _change(JobKind.UNPAUSE, "os-pause-server:unpause", VmState.PAUSED)
START = _change(JobKind.START, "servers:start", VmState.STOPPED)
STOP = _change(JobKind.STOP, "servers:stop", VmState.ACTIVE, VmState.ERROR)
SOFT_REBOOT = dataclasses.replace(
    _change(JobKind.REBOOT, "servers:reboot", VmState.ACTIVE), options={"reboot_type": "SOFT"}
)
HARD_REBOOT = dataclasses.replace(
    _change(JobKind.REBOOT, "servers:reboot", *VmState),
    task_state=TaskState.REBOOTING_HARD,
    options={"reboot_type": "HARD"},
)
REBOOTS = {"SOFT": SOFT_REBOOT, "HARD": HARD_REBOOT}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Powers:
    """Requests them; `accept_timeout_s` is how long an agent may take to accept."""

    ledger: Ledger
    overrides: Overrides
    agents: Agents
    accept_timeout_s: float

    def request(
        self,
        caller: RequestContext,
        instance: Instance,
        change: Change,
        job_id: str | None = None,
    ) -> Job:
        """Make a job of a change; it is cast by whoever the caller tells of it.

        It takes `job_id` for its own, if one is given; the caller sees to it that it is new.
        Raises Conflict or InstanceBusy (state), or AgentUnavailable.
        """
        _require_state(instance, change)
        self.agents.require_up(instance.host)
        job = self.ledger.reserve(
            NewJob(
                id=job_id or str(uuid.uuid4()),
                kind=change.kind,
                instance=instance,
                user_id=caller.user_id,
                image_id="",
                options=change.options,
                context={**caller.to_dict(), "auth_token": None},
                action=change.action,
                task_state=change.task_state,
                deadline_at=clock.now() + dt.timedelta(seconds=self.accept_timeout_s),
                castable=True,
            )
        )
        LOG.info(
            "User %s of project %s asks for %s: job %s",
            caller.user_id,
            caller.project_id,
            change.action,
            job.id,
        )
        return job

    def lock(self, caller: RequestContext, instance: Instance, reason: str | None) -> None:
        """Keep everybody but administrators from changing the instance.

        What is locked already, its owner locks in vain, as in Nova.
        """
        is_owner = caller.project_id == instance.project_id
        if is_owner and instance.locked_by is not None:
            return
        by = LockedBy.OWNER if is_owner else LockedBy.ADMIN
        self.overrides.lock(instance.uuid, by=by, reason=reason)
        LOG.info("User %s locks the instance: %s", caller.user_id, reason or "no reason given")

    def unlock(self, caller: RequestContext, instance: Instance) -> None:
        """Take the lock away."""
        self.overrides.unlock(instance.uuid)
        LOG.info("User %s unlocks the instance", caller.user_id)

    def reset_state(
        self, caller: RequestContext, instance: Instance, *, in_error: bool
    ) -> str | None:
        """Free an instance that is stuck; return the job that held it, which is asked to end."""
        held_by = self.overrides.reset(instance.uuid, in_error=in_error)
        if held_by is not None:
            self.ledger.cancel(held_by)
        LOG.warning(
            "User %s resets the instance to %s%s",
            caller.user_id,
            "error" if in_error else "active",
            f"; job {held_by}, which held it, is cancelled" if held_by else "",
        )
        return held_by


def require_unlocked(instance: Instance, *, is_admin: bool) -> None:
    """Raise Conflict, in Nova's words, if the instance is locked for this caller."""
    if instance.locked_by is not None and not is_admin:
        raise Conflict(f"Instance {instance.uuid} is locked")


def _require_state(instance: Instance, change: Change) -> None:
    where = f"Cannot '{change.action}' instance {instance.uuid} while it is in"
    if instance.task_state is not None:
        raise Conflict(f"{where} task_state {instance.task_state}")
    if instance.vm_state not in change.vm_states:
        raise Conflict(f"{where} vm_state {instance.vm_state}")
