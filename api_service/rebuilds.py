# SPDX-License-Identifier: Apache-2.0
"""The use case "make this instance's disk anew of that image": no HTTP, no SQL.

As with snapshots: check → reserve the instance and write the job → write what else
was asked for on the instance → let the dispatcher cast. Whatever is wrong with the
image's record is found before anything is reserved.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import uuid
from collections.abc import Mapping

from api_service import image_checks
from api_service.agents import Agents
from api_service.errors import BadRequest, Conflict
from api_service.image_checks import Fit, ImageLooks
from api_service.quotas import Quotas
from api_service.store.ledger import Ledger
from api_service.store.overrides import Overrides
from api_service.store.records import Instance, Job, NewJob
from common import clock
from common.context import RequestContext
from common.errors import DeadlinePassed, StillframeError
from common.states import REBUILD_VM_STATES, JobKind, TaskState, VmState

LOG = logging.getLogger(__name__)

_UNFORESEEN = StillframeError("the request failed")
RULE = "os_compute_api:servers:rebuild"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RebuildWish:
    """What the caller asked for."""

    image_id: str
    #: The instance's fields that it shall have from now on, by their names in the store.
    changes: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    #: Its metadata from now on; None: what it has.
    metadata: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilds:
    """Requests rebuilds; `accept_timeout_s` is how long an agent may take to accept."""

    ledger: Ledger
    overrides: Overrides
    agents: Agents
    images: ImageLooks
    accept_timeout_s: float
    quotas: Quotas = dataclasses.field(default_factory=Quotas)

    def request(
        self,
        caller: RequestContext,
        instance: Instance,
        wish: RebuildWish,
        *,
        is_admin: bool,
        job_id: str | None = None,
    ) -> Job:
        """Make a job of a wish; it is cast by whoever the caller tells of it.

        It takes `job_id` for its own, if one is given; the caller sees to it that it is new.
        Raises Conflict or InstanceBusy (state), AgentUnavailable, BadRequest (the image),
        OverQuota, Forbidden or ImageServiceUnavailable; then nothing is left behind.
        """
        _require_state(instance)
        self.quotas.require_server_metadata(wish.metadata or {})
        self.agents.require_up(instance.host)
        fit = Fit(flavor=instance.flavor, architecture=_architecture(instance))
        image_checks.usable_image(
            self.images, caller, wish.image_id, fit, is_admin=is_admin, use="rebuild"
        )
        job = self._reserve(caller, instance, wish, job_id or str(uuid.uuid4()))
        try:
            self._write(instance, wish)
            if not self.ledger.make_castable(job.id):
                raise DeadlinePassed("the request took too long; try again")
        except Exception as error:
            told = error if isinstance(error, StillframeError) else _UNFORESEEN
            self.ledger.fail(job.id, told.message, told.code)
            raise
        by = (caller.user_id, caller.project_id)
        LOG.info(
            "User %s of project %s asks for a rebuild of image %s: job %s",
            *by,
            wish.image_id,
            job.id,
        )
        return job

    def _reserve(
        self, caller: RequestContext, instance: Instance, wish: RebuildWish, job_id: str
    ) -> Job:
        return self.ledger.reserve(
            NewJob(
                id=job_id,
                kind=JobKind.REBUILD,
                instance=instance,
                user_id=caller.user_id,
                # Not the job's own: what a failed one has made is removed.
                image_id="",
                options={"image_id": wish.image_id, "start": _starts(instance)},
                context={**caller.to_dict(), "auth_token": None},
                action="rebuild",
                task_state=TaskState.REBUILDING,
                deadline_at=clock.now() + dt.timedelta(seconds=self.accept_timeout_s),
                max_open=self.quotas.open_jobs,
            )
        )

    def _write(self, instance: Instance, wish: RebuildWish) -> None:
        """Write on the instance what its user wants to be read there, as Nova does at once."""
        if wish.changes:
            self.overrides.describe(instance.uuid, wish.changes)
        if wish.metadata is not None:
            metadata = dict(wish.metadata)
            self.overrides.change_metadata(instance.uuid, lambda _: metadata)


def _starts(instance: Instance) -> bool | None:
    """Whether the guest is to run afterwards; None: if it runs when its turn has come.

    One that is shut off stays so; one that is broken is rebuilt to run again.
    """
    return True if instance.vm_state is VmState.ERROR else None


def _architecture(instance: Instance) -> str | None:
    try:
        return image_checks.architecture_of(instance.image_properties)
    except BadRequest:
        return None  # its own image said nonsense; the agent looks at the instance itself


def _require_state(instance: Instance) -> None:
    if instance.is_unlaunched and instance.vm_state is VmState.ERROR:
        raise Conflict("Cannot 'rebuild' an instance which has never been active")
    where = f"Cannot 'rebuild' instance {instance.uuid} while it is in"
    if instance.task_state is not None:
        raise Conflict(f"{where} task_state {instance.task_state}")
    if instance.vm_state not in REBUILD_VM_STATES:
        raise Conflict(f"{where} vm_state {instance.vm_state}")
