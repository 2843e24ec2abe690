# SPDX-License-Identifier: Apache-2.0
"""What the API casts to the agents, on topic `stillframe-compute`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from api_service.store.records import Job
from common import context
from common.messages import (
    BackupRequest,
    JobAdjust,
    JobCancel,
    JobRequest,
    PowerRequest,
    RebuildRequest,
    SnapshotOptions,
    SnapshotRequest,
    method_of,
    request_from_wire,
)
from common.rpc import Client
from common.states import POWER_KINDS, JobKind
from common.wire import Message


class AgentClient:
    """Casts jobs to the agent of their host."""

    def __init__(
        self, client: Client, clock_offset_s: Callable[[str], float] = lambda _host: 0.0
    ) -> None:
        self._client = client
        self._clock_offset_s = clock_offset_s

    def start(self, job: Job) -> None:
        """Cast a job to the agent that shall do it.

        Raises AgentUnavailable if its host has no queue, BrokerUnavailable if
        the broker cannot be reached.
        """
        # The agent looks at its own clock.
        deadline = job.deadline_at.timestamp() + self._clock_offset_s(job.host)
        self._cast(job, method_of(job.kind), _request(job, deadline))

    def cancel(self, job: Job) -> None:
        """Cast that a job shall end; raises as `start`."""
        self._cast(job, "cancel_job", JobCancel(job_id=job.id))

    def adjust(self, job: Job) -> None:
        """Cast a job's own limit; raises as `start`."""
        limit = job.options.get("bandwidth_limit") or 0
        self._cast(job, "adjust_job", JobAdjust(job_id=job.id, bandwidth_limit=limit))

    def _cast(self, job: Job, method: str, message: Message) -> None:
        caller = context.from_wire(job.context, job.instance_uuid)
        self._client.cast(caller, method, host=job.host, **message.to_wire())


#: Their options are the request's own fields.
_AS_THEY_ARE = frozenset({JobKind.CREATE, JobKind.DELETE, JobKind.VERIFY})


def _request(job: Job, deadline: float) -> JobRequest:
    """Return what the agent is asked for; the options are those of the job's kind."""
    if job.kind in POWER_KINDS:
        return PowerRequest(
            kind=job.kind, instance=job.instance, job_id=job.id, deadline=deadline, **job.options
        )
    if job.kind in _AS_THEY_ARE:
        options = dict(job.options)
        instance = dataclasses.replace(job.instance, name=options.pop("name", None))
        ids = {"image_id": job.image_id, "job_id": job.id, "deadline": deadline}
        return request_from_wire(job.kind, {"instance": instance.to_wire(), **ids, **options})
    if job.kind is JobKind.REBUILD:
        return RebuildRequest(
            instance=job.instance, job_id=job.id, deadline=deadline, **job.options
        )
    wanted: dict[str, Any] = {
        "instance": job.instance,
        "image_id": job.image_id,
        "job_id": job.id,
        "deadline": deadline,
        "options": SnapshotOptions.from_wire(job.options),
    }
    if job.kind is JobKind.BACKUP:
        return BackupRequest(backup_type=job.backup_type or "", rotation=job.rotation, **wanted)
    return SnapshotRequest(**wanted)
