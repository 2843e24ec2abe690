# SPDX-License-Identifier: Apache-2.0
"""Notifications of what becomes of jobs, by Nova's names: `instance.snapshot.start` and the like.

The ledger tells of each move of a job; what that means is PHASES' to say. The payload
is made and sent in the outbox's thread. docs/notifications.md describes it.
"""

from __future__ import annotations

from typing import Any

from api_service import views
from api_service.store.inventory import Inventory
from api_service.store.records import Instance, Job
from common import context
from common.notifier import Event, Outbox
from common.reports import Flavor
from common.states import ENDED, IMAGE_KINDS, JobKind, JobState, PowerState

#: Of the payload; minor versions only add.
VERSION = "1.0"

#: Nova's word, where it is not ours.
NAMES: dict[JobKind, str] = {
    JobKind.BACKUP: "snapshot",
    JobKind.START: "power_on",
    JobKind.STOP: "power_off",
}

#: What is told of a job, and how loud.
PHASES: dict[str, str] = {"start": "info", "progress": "info", "end": "info", "error": "error"}

#: Nova's words in notifications, for its numbers.
POWER_STATES: dict[PowerState, str] = {
    PowerState.NOSTATE: "pending",
    PowerState.RUNNING: "running",
    PowerState.PAUSED: "paused",
    PowerState.SHUTDOWN: "shutdown",
    PowerState.CRASHED: "crashed",
    PowerState.SUSPENDED: "suspended",
}
#: Percent: progress is told at each.
_STRIDE = 10


class Notifications:
    """Listens to the ledger."""

    def __init__(self, inventory: Inventory, outbox: Outbox) -> None:
        self._inventory = inventory
        self._outbox = outbox

    def job_moved(self, before: Job | None, job: Job) -> None:
        """Have told what a move means; returns at once."""
        for phase in phases_of(before, job):
            # Bound here: the loop goes on before it is called.
            self._outbox.put(lambda phase=phase: self._event(phase, job))  # type: ignore[misc]

    def _event(self, phase: str, job: Job) -> Event:
        caller = context.from_wire(job.context, job.instance_uuid)
        instance = self._inventory.past_instance(job.instance_uuid)
        return Event(
            context=caller,
            level=PHASES[phase],
            event_type=f"instance.{NAMES.get(job.kind, job.kind)}.{phase}",
            payload=payload(job, instance, caller),
        )


def phases_of(before: Job | None, job: Job) -> list[str]:
    """Return what is to be told when a job has moved, in order."""
    was = before.state if before else JobState.PENDING
    told = []
    if was is JobState.PENDING and job.state in _BEGUN:
        told.append("start")
    if job.state in ENDED:
        told += ["end" if job.state is JobState.DONE else "error"] if job.state != was else []
    elif job.state is JobState.RUNNING and _shows_more(before, job):
        told.append("progress")
    return told


def payload(job: Job, instance: Instance | None, caller: context.RequestContext) -> dict[str, Any]:
    """Return the payload: Nova's fields of the instance, and the job as `/v1/jobs/ID` shows it."""
    is_failure = job.state in ENDED and job.state is not JobState.DONE
    data = {
        "uuid": job.instance_uuid,
        "tenant_id": job.project_id,
        "host": job.host,
        **_instance(instance),
        "action_initiator_user": job.user_id,
        "action_initiator_project": caller.project_id,
        "request_id": caller.request_id,
        "snapshot_image_id": (job.image_id or None) if job.kind in IMAGE_KINDS else None,
        "fault": (
            {"exception": job.reason_code, "exception_message": job.reason} if is_failure else None
        ),
        "job": views.job(job, sees_host=True),
    }
    return _object("InstanceJobPayload", data)


_BEGUN = frozenset({JobState.ACCEPTED, JobState.RUNNING, JobState.DONE})


def _shows_more(before: Job | None, job: Job) -> bool:
    """Tell whether a step began or another stretch is done: not each report is worth telling."""
    if before is None or before.step != job.step:
        return True
    return views.percent(before) // _STRIDE != views.percent(job) // _STRIDE


def _instance(instance: Instance | None) -> dict[str, Any]:
    """Return what the payload tells of an instance; nothing, where an agent alone knew it."""
    if instance is None:
        return dict.fromkeys(
            ("user_id", "display_name", "state", "task_state", "power_state", "image_uuid")
        ) | {"flavor": None}
    return {
        "user_id": instance.user_id,
        "display_name": instance.name,
        "state": instance.vm_state,
        "task_state": instance.task_state,
        "power_state": POWER_STATES[instance.power_state],
        "image_uuid": instance.image_ref,
        "flavor": _flavor(instance.flavor),
    }


def _flavor(flavor: Flavor) -> dict[str, Any]:
    data = {
        "name": flavor.name,
        "vcpus": flavor.vcpus,
        "memory_mb": flavor.memory_mib,
        "root_gb": flavor.disk_gib,
        "ephemeral_gb": flavor.ephemeral_gib,
        "swap": flavor.swap_mib,
    }
    return _object("FlavorPayload", data)


def _object(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Wrap as oslo.versionedobjects does, so consumers of Nova's read ours with another prefix."""
    return {
        "stillframe_object.namespace": "stillframe",
        "stillframe_object.name": name,
        "stillframe_object.version": VERSION,
        "stillframe_object.data": data,
    }
