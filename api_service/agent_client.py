# SPDX-License-Identifier: Apache-2.0
"""What the API casts to the agents: `SnapshotRequest` on topic `stillframe-compute`."""

from __future__ import annotations

from api_service.store.records import Job
from common import context
from common.messages import SnapshotOptions, SnapshotRequest
from common.rpc import Client


class AgentClient:
    """Casts jobs to the agent of their host."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def snapshot(self, job: Job) -> None:
        """Cast a snapshot job.

        Raises AgentUnavailable if its host has no queue, BrokerUnavailable if
        the broker cannot be reached.
        """
        request = SnapshotRequest(
            instance=job.instance,
            image_id=job.image_id,
            job_id=job.id,
            deadline=job.deadline_at.timestamp(),
            options=SnapshotOptions.from_wire(job.options),
        )
        caller = context.from_wire(job.context, job.instance_uuid)
        self._client.cast(caller, "snapshot_instance", host=job.host, **request.to_wire())
