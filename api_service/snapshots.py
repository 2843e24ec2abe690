# SPDX-License-Identifier: Apache-2.0
"""The use case "take a snapshot of this instance": no HTTP, no SQL.

In this order, so that a crash between any two steps leaves something that the
reaper can see and finish or undo: check → reserve the instance and write the
job → create the image's record → let the dispatcher cast. A 202 is a promise.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import uuid
from collections.abc import Mapping

from api_service import images
from api_service.agents import Agents
from api_service.errors import Conflict
from api_service.images import ImageRecords
from api_service.store.ledger import Ledger
from api_service.store.records import Instance, Job, NewJob
from common import clock
from common.context import RequestContext
from common.errors import DeadlinePassed, StillframeError
from common.states import SNAPSHOT_VM_STATES, JobKind, TaskState

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotWish:
    """What the caller asked for."""

    name: str
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """Requests snapshots; `accept_timeout_s` is how long an agent may take to accept."""

    ledger: Ledger
    agents: Agents
    images: ImageRecords
    accept_timeout_s: float

    def request(self, caller: RequestContext, instance: Instance, wish: SnapshotWish) -> Job:
        """Make a job of a wish; it is cast by whoever the caller tells of it.

        Raises Conflict or InstanceBusy (state), AgentUnavailable, BadRequest,
        ImageRefused, ImageServiceUnavailable or DeadlinePassed (Glance took longer
        than the job may wait); then nothing is left behind.
        """
        _require_quiet(instance)
        self.agents.require_up(instance.host)
        # Before anything is reserved: it may find fault with the metadata.
        record = images.snapshot_record(instance, caller, wish.name, wish.metadata)
        image_id, job_id = str(uuid.uuid4()), str(uuid.uuid4())
        deadline = clock.now() + dt.timedelta(seconds=self.accept_timeout_s)
        job = self.ledger.reserve(
            NewJob(
                id=job_id,
                kind=JobKind.SNAPSHOT,
                instance=instance,
                user_id=caller.user_id,
                image_id=image_id,
                options={},
                context={**caller.to_dict(), "auth_token": None},
                action="createImage",
                task_state=TaskState.IMAGE_SNAPSHOT_PENDING,
                deadline_at=deadline,
            )
        )
        try:
            self.images.create(image_id, record)
            if not self.ledger.make_castable(job_id):
                raise DeadlinePassed(
                    "the image service took too long to make the image's record; try again"
                )
        except Exception as error:
            self._undo(job, error)
            raise
        LOG.info(
            "User %s of project %s asks for a snapshot: image %s (%s), job %s",
            caller.user_id,
            caller.project_id,
            image_id,
            wish.name,
            job_id,
        )
        return job

    def _undo(self, job: Job, error: Exception) -> None:
        """Let the instance go; the record may have been made although the answer was lost."""
        reason = error.message if isinstance(error, StillframeError) else "the request failed"
        code = error.code if isinstance(error, StillframeError) else "internal_error"
        self.ledger.fail(job.id, reason, code)
        try:
            self.images.delete(job.image_id)
        except StillframeError as failure:
            LOG.warning("Image %s is removed later: %s", job.image_id, failure)
        else:
            self.ledger.was_discarded(job.id)


def _require_quiet(instance: Instance) -> None:
    """Raise Conflict, in Nova's words, unless a snapshot may be asked for now."""
    if instance.task_state is not None:
        raise Conflict(
            f"Cannot 'createImage' instance {instance.uuid} while it is in task_state "
            f"{instance.task_state}"
        )
    if instance.vm_state not in SNAPSHOT_VM_STATES:
        raise Conflict(
            f"Cannot 'createImage' instance {instance.uuid} while it is in vm_state "
            f"{instance.vm_state}"
        )
