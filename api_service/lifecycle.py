# SPDX-License-Identifier: Apache-2.0
"""The use cases "a new instance of this image" and "delete this instance": no HTTP, no SQL.

A new one: check → choose a host → record the instance and its job → let the dispatcher
cast; several of one request the same way, all or none. From then on it exists; where
no host can have it, or making it fails, it is in error and says why, until it is deleted.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import logging
import secrets
import string
import uuid
from collections.abc import Mapping
from typing import Any

from api_service import image_checks
from api_service.agents import Agents
from api_service.errors import BadRequest, Conflict, Forbidden
from api_service.image_checks import Fit, ImageLooks
from api_service.placement import Placement
from api_service.quotas import Quotas
from api_service.store.inventory import Inventory
from api_service.store.ledger import Ledger
from api_service.store.lifecycles import Lifecycles, Wanted
from api_service.store.records import Instance, Job, NewJob
from common import clock
from common.context import RequestContext
from common.glance import Image
from common.messages import domain_name_of
from common.reports import Flavor
from common.states import ENDED, FIRST_TASK_STATE, JobKind, PowerState, TaskState, VmState

LOG = logging.getLogger(__name__)

NO_VALID_HOST = "No valid host was found. There are not enough hosts available."
#: What says of an image where it came from, and nothing of the instances made of it.
_NOT_OF_INSTANCES = frozenset(
    """
    base_image_ref image_location image_state image_type instance_uuid owner_id owner_project_name
    owner_user_name user_id backup_type
    """.split()  # noqa: SIM905 # as words it can be read
)
_NAME_MAX = 255
_OURS = ("stillframe_", "os_glance", "os_hash")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerWish:
    """What the caller asked for; `fields` are the instance's own, by their names in the store."""

    name: str
    image_id: str
    flavor_id: str
    #: Names or ids of networks; empty: it has none.
    networks: tuple[str, ...] = ()
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    #: It shall be there and nowhere else.
    host: str | None = None
    #: How many there shall be, and how many more if they fit.
    least: int = 1
    most: int = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What came of a wish: the jobs, one for each instance, and what they have in common."""

    reservation_id: str
    jobs: list[Job]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """Makes and deletes instances; `accept_timeout_s` is how long an agent may take to accept."""

    ledger: Ledger
    lifecycles: Lifecycles
    inventory: Inventory
    agents: Agents
    placement: Placement
    images: ImageLooks
    accept_timeout_s: float
    quotas: Quotas = dataclasses.field(default_factory=Quotas)
    #: How many instances a project may have; None: any number.
    most_instances: int | None = None
    flavors: Mapping[str, Flavor] = dataclasses.field(default_factory=dict)
    #: The network of whoever asks for none in particular; None: they get none.
    default_network: str | None = None
    #: Also what was not made here may be deleted.
    deletes_announced: bool = False

    def create(
        self,
        caller: RequestContext,
        wish: ServerWish,
        *,
        is_admin: bool,
        job_id: str | None = None,
    ) -> Made:
        """Record new instances and the jobs that make them, which the caller has cast.

        It takes `job_id` for the first one's, if one is given; the caller sees to it that it
        is new. Where one instance is enough and no host has room even for that, its job has
        ended already: it is in error. Raises BadRequest, Forbidden, OverQuota, Conflict (there
        is room for fewer than asked for) or ImageServiceUnavailable; then there is nothing.
        """
        flavor = self.flavors.get(wish.flavor_id)
        if flavor is None:
            raise BadRequest("Invalid flavorRef provided.")
        if caller.project_id is None or caller.user_id is None:
            raise BadRequest("A server belongs to a project: ask with a token that names one.")
        self.quotas.require_server_metadata(wish.metadata)
        image = image_checks.usable_image(
            self.images, caller, wish.image_id, Fit(flavor=flavor), is_admin=is_admin, use="create"
        )
        hosts = self._hosts(flavor, wish)
        reservation_id = _new_reservation_id()

        def make(count: int) -> list[NewJob]:
            newborn = [
                dataclasses.replace(
                    _newborn(caller, _one_of(wish, index, count), flavor, image, host),
                    reservation_id=reservation_id,
                    launch_index=index,
                )
                for index, host in enumerate(hosts[:count])
            ]
            ids = itertools.chain([job_id], itertools.repeat(None))
            return [
                self._creation(caller, one, wish, own_id)
                for one, own_id in zip(newborn, ids, strict=False)
            ]

        wanted = Wanted(project_id=caller.project_id, least=wish.least, most=len(hosts))
        jobs = self.lifecycles.enter(wanted, make, self.most_instances)
        told = [self._told(caller, job, flavor, wish) for job in jobs]
        return Made(reservation_id=reservation_id, jobs=told)

    def _hosts(self, flavor: Flavor, wish: ServerWish) -> list[str | None]:
        """Return a host for each instance that there may be; None: the only one has none.

        Raises BadRequest for a network that no host has, Conflict where there is too little room.
        """
        if unknown := self.placement.unknown(wish.networks, wish.host):
            raise BadRequest(f"Network {unknown} could not be found.")
        hosts = self.placement.choose_many(flavor, wish.most, wish.host, wish.networks)
        if len(hosts) >= wish.least:
            return [*hosts]
        if wish.least == 1:
            return [None]
        # How much room there is is the operator's business.
        LOG.warning("There is room for %d of at least %d new instances", len(hosts), wish.least)
        raise Conflict(f"{NO_VALID_HOST} Ask for fewer servers, or again later.")

    def _creation(
        self, caller: RequestContext, instance: Instance, wish: ServerWish, job_id: str | None
    ) -> NewJob:
        options = {
            "name": instance.name,
            "flavor": instance.flavor.to_wire(),
            "networks": list(wish.networks),
            "image_properties": instance.image_properties,
        }
        own_id = {"id": job_id} if job_id else {}
        more = {"image_id": instance.image_ref, "castable": bool(instance.host), **own_id}
        return self._job(caller, JobKind.CREATE, instance, options=options, **more)

    def _told(self, caller: RequestContext, job: Job, flavor: Flavor, wish: ServerWish) -> Job:
        """Log what is to be; end the job if no host can have its instance."""
        caller.resource_uuid = job.instance_uuid
        by = (caller.user_id, caller.project_id)
        LOG.info(
            "User %s of project %s asks for a new instance of image %s, flavor %s: job %s",
            *(*by, job.image_id, flavor.name, job.id),
        )
        if job.host:
            LOG.info("Host %s is to have it", job.host)
            return job
        LOG.warning("No live host%s has room for it", f" {wish.host}" if wish.host else "")
        return self.ledger.fail(job.id, NO_VALID_HOST, "no_valid_host") or job

    def delete(self, caller: RequestContext, instance: Instance) -> list[str]:
        """Delete an instance, whatever it is at; return the jobs that agents must be told of.

        Raises Forbidden (it was not made here), AgentUnavailable or InstanceNotFound.
        """
        if not (instance.made_here or self.deletes_announced):
            raise Forbidden(
                "This server was not made through this API, so it is not deleted here; "
                "whoever made it ends it."
            )
        if instance.task_state == TaskState.DELETING:
            LOG.info("User %s asks again to delete the instance", caller.user_id)
            return []
        if not instance.is_unlaunched:
            self.agents.require_up(instance.host)
        told = self._end_what_holds(instance)
        # One that is given up before an agent has it is nowhere but here.
        now = self.inventory.instance(instance.uuid) or instance
        is_only_here = now.is_unlaunched and now.job_id is None
        job = self.lifecycles.take_for_deletion(
            self._job(
                caller,
                JobKind.DELETE,
                dataclasses.replace(now, host="") if is_only_here else now,
                castable=not is_only_here,
            )
        )
        if job is None:
            return told
        by = (caller.user_id, caller.project_id)
        LOG.info("User %s of project %s deletes the instance: job %s", *by, job.id)
        if is_only_here:
            self.ledger.complete(job.id)
            return told
        return [*told, job.id]

    def _end_what_holds(self, instance: Instance) -> list[str]:
        """Cancel the job that holds an instance; return it, if its agent must be told."""
        held = self.ledger.cancel(instance.job_id) if instance.job_id else None
        if held is None:
            return []
        LOG.info("Job %s is cancelled: its instance is deleted", held.id)
        # Also where it has ended: it may have been cast, and not accepted yet.
        return [held.id] if held.cast_at is not None or held.state not in ENDED else []

    def _job(
        self, caller: RequestContext, kind: JobKind, instance: Instance, **more: Any
    ) -> NewJob:
        values: dict[str, Any] = {"id": str(uuid.uuid4()), "image_id": "", "options": {}} | more
        return NewJob(
            kind=kind,
            instance=instance,
            user_id=caller.user_id,
            context={**caller.to_dict(), "auth_token": None},
            action=str(kind),
            task_state=FIRST_TASK_STATE[kind],
            deadline_at=clock.now() + dt.timedelta(seconds=self.accept_timeout_s),
            **values,
        )


def _new_reservation_id() -> str:
    """Return an id of Nova's form."""
    letters = string.ascii_lowercase + string.digits
    return "r-" + "".join(secrets.choice(letters) for _ in range(8))


def _one_of(wish: ServerWish, index: int, count: int) -> ServerWish:
    """Return the wish for one of several, which Nova tells apart by their names."""
    if count == 1:
        return wish
    suffix = f"-{index + 1}"
    return dataclasses.replace(wish, name=wish.name[: _NAME_MAX - len(suffix)] + suffix)


def _newborn(
    caller: RequestContext, wish: ServerWish, flavor: Flavor, image: Image, host: str | None
) -> Instance:
    instance_uuid, now = str(uuid.uuid4()), clock.now()
    fields: dict[str, Any] = {
        **dict.fromkeys(
            ("description", "hostname", "access_ip_v4", "access_ip_v6", "disk_config"), None
        ),
        **wish.fields,
        "name": wish.name,
    }
    return Instance(
        uuid=instance_uuid,
        host=host or "",
        domain_name=domain_name_of(instance_uuid),
        project_id=caller.project_id or "",
        user_id=caller.user_id or "",
        flavor=flavor,
        image_ref=image.id,
        image_properties=inherited(image),
        root_device_name="/dev/vda",
        power_state=PowerState.NOSTATE,
        vm_state=VmState.BUILDING,
        task_state=TaskState.SCHEDULING,
        metadata=dict(wish.metadata),
        locked_by=None,
        locked_reason=None,
        in_error=False,
        made_here=True,
        job_id=None,
        progress=0,
        created_at=now,
        updated_at=now,
        deleted_at=None,
        **fields,
    )


def inherited(image: Image) -> dict[str, str]:
    """Return the properties of an image that an instance of it has, and its snapshots get."""
    return {
        name: value
        for name, value in image.properties.items()
        if name not in _NOT_OF_INSTANCES and not name.startswith(_OURS)
    }
