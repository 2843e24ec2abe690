# SPDX-License-Identifier: Apache-2.0
"""Instance actions: jobs, as Nova tells what was done to a server."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

from api_service.microversions import Version
from api_service.store.action_lists import REQUEST_PREFIX
from api_service.store.records import Job
from api_service.views.viewer import Viewer
from common import clock
from common.reports import StepTime
from common.states import ENDED, JobKind, JobState

#: Nova's names, where they are not the kind's own.
_ACTIONS = {JobKind.SNAPSHOT: "createImage", JobKind.BACKUP: "createBackup"}
_UPDATED_AT = Version(2, 58)
_HOST_ID = Version(2, 62)
_DETAILS = Version(2, 84)


def instance_action(job: Job, viewer: Viewer) -> dict[str, Any]:
    """Return an entry of `GET /servers/{id}/os-instance-actions`."""
    body = {
        "action": _ACTIONS.get(job.kind, str(job.kind)),
        "instance_uuid": job.instance_uuid,
        "request_id": request_id_of(job),
        "user_id": job.user_id or "",
        "project_id": job.project_id or "",
        "start_time": _time(job.created_at),
        "message": "Error" if job.state is JobState.ERROR else None,
    }
    if viewer.version >= _UPDATED_AT:
        body["updated_at"] = _time(job.finished_at or job.reported_at or job.created_at)
    return body


def instance_action_with_events(job: Job, viewer: Viewer) -> dict[str, Any]:
    """Return an action with its events: the job as Nova's one event, and each of its steps.

    Before 2.51 Nova keeps them from users; the stock client then breaks, so here all see them.
    """
    whole = _event(
        f"compute_{job.kind}_instance", job.accepted_at or job.created_at, job.finished_at, job
    )
    steps = [_step(step, job) for step in job.steps]
    return instance_action(job, viewer) | {
        "events": [_for_viewer(event, job, viewer) for event in (whole, *steps)]
    }


def request_id_of(job: Job) -> str:
    """Return the id of the request that asked for a job; one is made up for a cast without."""
    return str(job.context.get("request_id") or f"{REQUEST_PREFIX}{job.id}")


def _step(step: StepTime, job: Job) -> dict[str, Any]:
    ended = clock.from_epoch(step.ended_at) if step.ended_at is not None else None
    return _event(f"compute_{job.kind}_{step.name}", clock.from_epoch(step.began_at), ended, job)


def _event(name: str, began: dt.datetime, ended: dt.datetime | None, job: Job) -> dict[str, Any]:
    failed = job.state in ENDED and job.state is not JobState.DONE
    return {
        "event": name,
        "start_time": _time(began),
        "finish_time": _time(ended) if ended else None,
        "result": None if ended is None else "Error" if failed else "Success",
    }


def _for_viewer(event: dict[str, Any], job: Job, viewer: Viewer) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if viewer.is_admin:
        more["traceback"] = None
    if viewer.version >= _HOST_ID:
        more["hostId"] = hashlib.sha224(f"{job.project_id}{job.host}".encode()).hexdigest()
        more |= {"host": job.host} if viewer.is_admin else {}
    if viewer.version >= _DETAILS:
        more["details"] = job.reason if event["result"] == "Error" else None
    return event | more


def _time(value: dt.datetime) -> str:
    return value.replace(tzinfo=None).isoformat(timespec="microseconds")
