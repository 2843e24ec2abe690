# SPDX-License-Identifier: Apache-2.0
"""The messages between the daemons: the wire contract, in plain Python.

Each message is a frozen dataclass (see `wire`). docs/rpc.md describes the methods that carry
these messages; HISTORY says which version added what.
"""

from __future__ import annotations

import dataclasses
import typing
import uuid

from common.errors import MalformedMessage
from common.states import IMAGE_KINDS, JobKind
from common.wire import Message

#: The agents' topic (server = host) and the API's.
COMPUTE_TOPIC = "stillframe-compute"
API_TOPIC = "stillframe-api"

#: MB/s: what no job's limit is above.
LIMIT_MAX = 1_000_000

#: How many backups of a type may be kept at the most: what every database can count to.
ROTATION_MAX = 999_999_999
_BACKUP_TYPE_MAX = 255

#: Newest version of both interfaces; minor versions only add.
RPC_VERSION = "1.4"
HISTORY = {
    "1.0": "snapshot_instance; host_report, job_accepted, job_progress, job_finished",
    "1.1": "cancel_job, adjust_job; more options of a snapshot, an image for each disk",
    "1.2": (
        "host_report says which agent speaks, and is a call: it answers whether it may;"
        " pause_instance, unpause_instance, start_instance, stop_instance, reboot_instance"
    ),
    "1.3": (
        "topic stillframe-api takes calls of other services (see calls): snapshot_instance,"
        " pause_instance, unpause_instance, start_instance, stop_instance, reboot_instance,"
        " show_job, cancel_job"
    ),
    "1.4": (
        "backup_instance, rebuild_instance on both topics; a report says of which type a backup is;"
        " create_instance, delete_instance, verify_image; a host tells its free disk and networks"
    ),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRef(Message):
    """An instance as a cast names it; only `uuid` is needed, the agent knows the rest."""

    uuid: str
    project_id: str | None = None
    user_id: str | None = None
    name: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flavor(Message):
    """The instance's size, from the domain's metadata or, failing that, the domain itself."""

    name: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    ephemeral_gib: int = 0
    swap_mib: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions(Message):
    """What a request may choose; None means the agent's configuration decides.

    Raises MalformedMessage for a word that is not one of CHOICES, or a limit that is none.
    """

    CHOICES: typing.ClassVar[dict[str, tuple[str, ...]]] = {
        "pause": ("always", "never"),
        "freeze": ("never", "auto", "required"),
        "disks": ("root", "all"),
    }

    #: "always" or "never": stop the vCPUs around the capture.
    pause: str | None = None
    #: "never", "auto" (as the image's properties say) or "required": file systems frozen.
    freeze: str | None = None
    #: "root": the disk that the guest boots from; "all": every one, at one instant.
    disks: str | None = None
    #: Upload only what changed since the instance's last snapshot, where that is possible.
    incremental: bool | None = None
    #: MB/s that this job may read at the most, below the host's own limit; 0 is none.
    bandwidth_limit: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in self.CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                words = " or ".join(repr(word) for word in allowed)
                raise MalformedMessage(f"options.{name} must be {words}, not {value!r}")
        _require_limit("options.bandwidth_limit", self.bandwidth_limit)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest(Message):
    """Arguments of `snapshot_instance`.

    `deadline` (seconds since 1970) is the latest time to begin: a cast may wait
    in a queue while its agent is down. A caller without a ledger leaves out
    `job_id`; the job then takes an id derived from the image's, so that a
    doubled cast is still one job.
    """

    instance: InstanceRef
    image_id: str
    kind: typing.ClassVar[JobKind] = JobKind.SNAPSHOT

    job_id: str = ""
    deadline: float | None = None
    options: SnapshotOptions = dataclasses.field(default_factory=SnapshotOptions)

    def __post_init__(self) -> None:
        for name, value in (("instance.uuid", self.instance.uuid), ("image_id", self.image_id)):
            require_uuid(name, value)
        if self.job_id:
            require_uuid("job_id", self.job_id)
        else:
            derived = uuid.uuid5(uuid.UUID(self.image_id), "stillframe-job")
            object.__setattr__(self, "job_id", str(derived))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest(SnapshotRequest):
    """Arguments of `backup_instance`: a snapshot, which takes the place of older ones of its type.

    The agent only takes it. That `rotation` is kept to is the API's to see to,
    which alone knows what other backups there are.
    """

    kind: typing.ClassVar[JobKind] = JobKind.BACKUP

    #: Whatever the caller calls it ("daily"); each type is rotated by itself.
    backup_type: str
    #: How many of this type are kept, this one among them. None: rotation is somebody else's.
    rotation: int | None = None

    def __post_init__(self) -> None:
        # `super()` does not find its class in one with slots.
        SnapshotRequest.__post_init__(self)
        require_backup(self.backup_type, self.rotation)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PowerRequest(Message):
    """Arguments of `pause_instance`, `unpause_instance`, `start_instance` and the like.

    `kind` is the method's and does not stand on the wire of a cast. Without a
    `job_id` each cast is a job of its own.
    """

    CHOICES: typing.ClassVar[tuple[str, ...]] = ("SOFT", "HARD")

    kind: JobKind
    instance: InstanceRef
    job_id: str = ""
    deadline: float | None = None
    #: "SOFT": the guest shuts down by itself, if it does in time; "HARD": its power is cut.
    reboot_type: str = "SOFT"
    #: The guest may shut down by itself before its power is cut.
    clean_shutdown: bool = True

    #: It makes none.
    image_id: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        require_uuid("instance.uuid", self.instance.uuid)
        if self.reboot_type not in self.CHOICES:
            raise MalformedMessage(f"reboot_type must be SOFT or HARD, not {self.reboot_type!r}")
        if self.job_id:
            require_uuid("job_id", self.job_id)
        else:
            object.__setattr__(self, "job_id", str(uuid.uuid4()))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RebuildRequest(Message):
    """Arguments of `rebuild_instance`: the root disk is made anew of the image `image_id`.

    Without a `job_id` each cast is a job of its own.
    """

    instance: InstanceRef
    image_id: str
    kind: typing.ClassVar[JobKind] = JobKind.REBUILD

    job_id: str = ""
    deadline: float | None = None
    #: The guest runs afterwards; None: if it runs now.
    start: bool | None = None
    #: MB/s at which the image may be fetched, below the host's own limit; None or 0 is none.
    bandwidth_limit: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("instance.uuid", self.instance.uuid), ("image_id", self.image_id)):
            require_uuid(name, value)
        _require_limit("bandwidth_limit", self.bandwidth_limit)
        if self.job_id:
            require_uuid("job_id", self.job_id)
        else:
            object.__setattr__(self, "job_id", str(uuid.uuid4()))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest(Message):
    """Arguments of `create_instance`: make an instance whose disk is an image's.

    Project, user and name are the instance's own and stand in its definition. Without
    a `job_id` it is that of the instance, so that a doubled cast is still one job.
    """

    instance: InstanceRef
    image_id: str
    flavor: Flavor
    kind: typing.ClassVar[JobKind] = JobKind.CREATE

    #: Names or ids of the host's networks; none: it has no interface.
    networks: tuple[str, ...] = ()
    #: Properties of the image that its snapshots inherit.
    image_properties: dict[str, str] = dataclasses.field(default_factory=dict)
    job_id: str = ""
    deadline: float | None = None

    def __post_init__(self) -> None:
        _require_own_job(self, "stillframe-create")
        require_uuid("image_id", self.image_id)
        if not (self.instance.project_id and self.instance.user_id):
            raise MalformedMessage("instance.project_id and instance.user_id must name its owner")
        if min(self.flavor.vcpus, self.flavor.memory_mib) < 1 or self.flavor.disk_gib < 0:
            raise MalformedMessage("flavor must have a processor and memory")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRequest(Message):
    """Arguments of `delete_instance`: end an instance, its disks and its checkpoints with it."""

    instance: InstanceRef
    kind: typing.ClassVar[JobKind] = JobKind.DELETE

    job_id: str = ""
    deadline: float | None = None

    #: It makes none.
    image_id: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        _require_own_job(self, "stillframe-delete")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest(Message):
    """Arguments of `verify_image`: boot an image where nobody sees it, and see whether it does.

    `instance.uuid` is what the throw-away instance is called.
    """

    instance: InstanceRef
    image_id: str
    kind: typing.ClassVar[JobKind] = JobKind.VERIFY

    job_id: str = ""
    deadline: float | None = None

    def __post_init__(self) -> None:
        _require_own_job(self, "stillframe-verify")
        require_uuid("image_id", self.image_id)


#: What an agent can be asked for.
JobRequest = (
    SnapshotRequest | PowerRequest | RebuildRequest | CreateRequest | DeleteRequest | VerifyRequest
)

#: Requests of their own shape, by kind.
_OWN_REQUESTS: dict[
    JobKind, type[RebuildRequest | CreateRequest | DeleteRequest | VerifyRequest]
] = {one.kind: one for one in (RebuildRequest, CreateRequest, DeleteRequest, VerifyRequest)}
#: What asks for a job of a kind, where it is not `KIND_instance`.
_METHODS = {JobKind.VERIFY: "verify_image"}


def domain_name_of(instance_uuid: str) -> str:
    """Return what libvirt calls an instance that an agent makes."""
    return f"instance-{instance_uuid[:8]}"


def method_of(kind: JobKind) -> str:
    """Return the RPC method that asks an agent for a job of a kind."""
    return _METHODS.get(kind, f"{kind}_instance")


def request_from_wire(kind: JobKind, wire: typing.Mapping[str, object]) -> JobRequest:
    """Rebuild a request of that kind; raise MalformedMessage naming the field that does not fit."""
    if kind in _OWN_REQUESTS:
        return _OWN_REQUESTS[kind].from_wire(wire)
    if kind is JobKind.BACKUP:
        return BackupRequest.from_wire(wire)
    if kind in IMAGE_KINDS:
        return SnapshotRequest.from_wire(wire)
    return PowerRequest.from_wire({**wire, "kind": kind})


def backup_terms(request: JobRequest) -> dict[str, typing.Any]:
    """Return what a report repeats of the request of a backup; nothing of any other."""
    if not isinstance(request, BackupRequest):
        return {}
    return {"backup_type": request.backup_type, "rotation": request.rotation}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobCancel(Message):
    """Arguments of `cancel_job`: end the job soon and undo what it did."""

    job_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobAdjust(Message):
    """Arguments of `adjust_job`: `bandwidth_limit` in MB/s for this job; 0 is none of its own."""

    job_id: str
    bandwidth_limit: int

    def __post_init__(self) -> None:
        _require_limit("bandwidth_limit", self.bandwidth_limit)


def disk_image_id(root_image_id: str, disk: str) -> str:
    """Return the id of the image of another disk, known to both daemons beforehand."""
    return str(uuid.uuid5(uuid.UUID(root_image_id), f"stillframe-disk-{disk}"))


def second_image_id(image_id: str) -> str:
    """Return the id of the image that takes the place of one that failed its verification."""
    return str(uuid.uuid5(uuid.UUID(image_id), "stillframe-again"))


def require_uuid(name: str, value: str) -> None:
    """Raise MalformedMessage, naming the field, unless the value is a UUID."""
    try:
        uuid.UUID(value)
    except ValueError:
        raise MalformedMessage(f"{name} must be a UUID, not {value!r}") from None


def _require_own_job(request: CreateRequest | DeleteRequest | VerifyRequest, name: str) -> None:
    """Check the ids of a request; one without a `job_id` takes one that follows from them."""
    require_uuid("instance.uuid", request.instance.uuid)
    if request.job_id:
        require_uuid("job_id", request.job_id)
    else:
        derived = uuid.uuid5(uuid.UUID(request.instance.uuid), name)
        object.__setattr__(request, "job_id", str(derived))


def require_backup(backup_type: str, rotation: int | None) -> None:
    """Raise MalformedMessage, naming the field, for a type or a rotation that cannot be kept."""
    if len(backup_type) > _BACKUP_TYPE_MAX:
        raise MalformedMessage(f"backup_type must not be longer than {_BACKUP_TYPE_MAX} characters")
    if rotation is not None and not 0 <= rotation <= ROTATION_MAX:
        raise MalformedMessage(f"rotation must be 0 to {ROTATION_MAX}, not {rotation!r}")


def _require_limit(name: str, limit: int | None) -> None:
    if limit is not None and not 0 <= limit <= LIMIT_MAX:
        how = "negative" if limit < 0 else f"above {LIMIT_MAX}"
        raise MalformedMessage(f"{name} must not be {how}, not {limit!r}")
