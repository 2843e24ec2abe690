# SPDX-License-Identifier: Apache-2.0
"""The use case "try this image out": no HTTP, no SQL.

Some host boots it in an instance that nobody sees. The job ends `done` if it boots;
what came of it stands on the image, too (`stillframe_verified`).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import uuid

from api_service.errors import Conflict
from api_service.image_checks import ImageLooks
from api_service.placement import Placement
from api_service.store.lifecycles import Lifecycles
from api_service.store.records import Instance, Job, NewJob
from common import clock
from common.context import RequestContext
from common.errors import AgentUnavailable
from common.reports import Flavor
from common.states import FIRST_TASK_STATE, JobKind, PowerState, VmState

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verifications:
    """Requests them; `accept_timeout_s` is how long an agent may take to accept."""

    lifecycles: Lifecycles
    placement: Placement
    images: ImageLooks
    accept_timeout_s: float
    #: Of the instance that an image is tried out in.
    memory_mib: int = 512

    def request(self, caller: RequestContext, image_id: str, host: str | None = None) -> Job:
        """Make a job that tries an image out; it is cast by whoever the caller tells of it.

        It belongs to the image's project. Whether the caller may is decided before. Raises
        ImageNotFound, Conflict (not active), AgentUnavailable (no host has room) or
        ImageServiceUnavailable.
        """
        image = self.images.look(image_id)
        if image.status != "active":
            raise Conflict(f"Image {image_id} is not active.")
        flavor = Flavor(name="verify", vcpus=1, memory_mib=self.memory_mib, disk_gib=0)
        chosen = self.placement.choose(flavor, host)
        if chosen is None:
            raise AgentUnavailable(
                "no host with a live compute agent has room to try the image out; try again later"
            )
        project_id = image.owner or caller.project_id or ""
        job = self.lifecycles.enter_job(
            NewJob(
                id=str(uuid.uuid4()),
                kind=JobKind.VERIFY,
                instance=_throw_away(chosen, project_id, caller.user_id or "", flavor),
                user_id=caller.user_id,
                image_id=image.id,
                options={},
                context={**caller.to_dict(), "auth_token": None},
                action=str(JobKind.VERIFY),
                task_state=FIRST_TASK_STATE[JobKind.VERIFY],
                deadline_at=clock.now() + dt.timedelta(seconds=self.accept_timeout_s),
                castable=True,
            )
        )
        LOG.info("Image %s is to be tried out on host %s: job %s", image.id, chosen, job.id)
        return job


def _throw_away(host: str, project_id: str, user_id: str, flavor: Flavor) -> Instance:
    """Return what stands for the instance; no list ever has it."""
    now = clock.now()
    return Instance(
        uuid=str(uuid.uuid4()),
        host=host,
        name="",
        domain_name="",
        project_id=project_id,
        user_id=user_id,
        flavor=flavor,
        image_ref=None,
        image_properties={},
        root_device_name=None,
        power_state=PowerState.NOSTATE,
        vm_state=VmState.BUILDING,
        task_state=None,
        description=None,
        hostname=None,
        access_ip_v4=None,
        access_ip_v6=None,
        disk_config=None,
        metadata={},
        locked_by=None,
        locked_reason=None,
        in_error=False,
        job_id=None,
        progress=0,
        created_at=now,
        updated_at=now,
        deleted_at=None,
    )
