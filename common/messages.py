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
from common.states import ENDED, IMAGE_KINDS, JobKind, JobState, PowerState
from common.wire import Message

#: The agents' topic (server = host) and the API's.
COMPUTE_TOPIC = "stillframe-compute"
API_TOPIC = "stillframe-api"

#: MB/s: what no job's limit is above.
LIMIT_MAX = 1_000_000

#: Newest version of both interfaces; minor versions only add.
RPC_VERSION = "1.3"
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
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRef(Message):
    """An instance as a cast names it; only `uuid` is needed, the agent knows the rest."""

    uuid: str
    project_id: str | None = None
    user_id: str | None = None
    name: str | None = None


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
            _require_uuid(name, value)
        if self.job_id:
            _require_uuid("job_id", self.job_id)
        else:
            derived = uuid.uuid5(uuid.UUID(self.image_id), "stillframe-job")
            object.__setattr__(self, "job_id", str(derived))


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
        _require_uuid("instance.uuid", self.instance.uuid)
        if self.reboot_type not in self.CHOICES:
            raise MalformedMessage(f"reboot_type must be SOFT or HARD, not {self.reboot_type!r}")
        if self.job_id:
            _require_uuid("job_id", self.job_id)
        else:
            object.__setattr__(self, "job_id", str(uuid.uuid4()))


#: What an agent can be asked for.
JobRequest = SnapshotRequest | PowerRequest


def request_from_wire(kind: JobKind, wire: typing.Mapping[str, object]) -> JobRequest:
    """Rebuild a request of that kind; raise MalformedMessage naming the field that does not fit."""
    if kind in IMAGE_KINDS:
        return SnapshotRequest.from_wire(wire)
    return PowerRequest.from_wire({**wire, "kind": kind})


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobAccepted(Message):
    """The agent has the job in its journal and will end it, whatever happens."""

    job_id: str
    kind: JobKind
    host: str
    instance: InstanceRef
    image_id: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepTime(Message):
    """When a step began and ended (seconds since 1970); `ended_at` None while it runs."""

    name: str
    began_at: float
    ended_at: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress(Message):
    """Where a running job stands; about one a second, so a lost one does not matter."""

    job_id: str
    host: str
    step: str
    task_state: str | None = None
    bytes_done: int = 0
    bytes_total: int = 0
    rate_bytes_s: float = 0.0
    eta_s: float | None = None
    at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PauseStamps(Message):
    """QEMU's own times of a pause: vCPUs stopped, each backup job made, vCPUs running again."""

    stopped_at: float
    instants: tuple[float, ...] = ()
    resumed_at: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaptureFigures(Message):
    """What a capture was like; the outcome's figures and the image's properties."""

    method: str
    consistency: str
    captured_at: float
    pause_ms: float | None = None
    #: QEMU's own stamps prove that the instant lay inside the pause; None where nothing paused.
    instant_inside_pause: bool | None = None
    stamps: PauseStamps | None = None
    freeze_ms: float | None = None
    #: Disks that were asked for and cannot be captured, with the reason of each.
    disks_left_out: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DiskImage(Message):
    """The image that a job made of one disk ("vda"); the root disk's is the first.

    An increment names the image that it is relative to, and how many images
    lie below it; `why_full` says why one that was asked for did not come to be.
    """

    image_id: str
    disk: str
    size_bytes: int | None = None
    sha512: str | None = None
    parent_image_id: str | None = None
    chain_length: int = 0
    why_full: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome(Message):
    """How a job ended; repeated by the agent until the API has confirmed it.

    `reason` is a sentence for a person and safe to show to the tenant;
    `reason_code` is the stable word for programs.
    """

    job_id: str
    kind: JobKind
    host: str
    instance: InstanceRef
    image_id: str
    state: JobState
    reason: str | None = None
    reason_code: str | None = None
    size_bytes: int | None = None
    sha512: str | None = None
    capture: CaptureFigures | None = None
    #: One for each disk, the root disk's first; `image_id`, `size_bytes` and `sha512` are its.
    images: tuple[DiskImage, ...] = ()
    steps: tuple[StepTime, ...] = ()
    #: What the guest is doing now, where the job was to change that.
    power_state: PowerState | None = None
    accepted_at: float
    finished_at: float

    def __post_init__(self) -> None:
        if self.state not in ENDED:
            raise MalformedMessage(f"JobOutcome.state must be an end, not {str(self.state)!r}")
        if self.state is JobState.DONE and self.kind in IMAGE_KINDS:
            _require_uuid("JobOutcome.image_id", self.image_id)


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
class InstanceRecord(Message):
    """One instance as its agent sees it."""

    uuid: str
    name: str
    #: libvirt's own name of the domain ("instance-00000001").
    domain_name: str
    project_id: str
    project_name: str | None = None
    user_id: str
    user_name: str | None = None
    flavor: Flavor
    #: The image the root disk was made from, if the metadata tells.
    image_ref: str | None = None
    power_state: PowerState
    #: Properties that snapshots inherit (hw_*, os_*, architecture ...).
    image_properties: dict[str, str] = dataclasses.field(default_factory=dict)
    root_device_name: str | None = None
    created_at: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hypervisor(Message):
    """What the host is, for the operator's lists."""

    type: str
    version: int
    hostname: str
    vcpus: int
    memory_mib: int
    #: The host's own address, as far as its routes tell; None: an older agent's.
    host_ip: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReportTaken(Message):
    """Answer to `host_report`; an agent whose report is refused has another's host name."""

    taken: bool
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostReport(Message):
    """An agent's heartbeat.

    `instances` is the complete list, sent at start, on any change and every few
    heartbeats; None in the heartbeats between, which change nothing but the
    time last seen.
    """

    host: str
    #: One for each state directory: two agents that were given one host name differ in it.
    agent_id: str | None = None
    release: str
    rpc_version: str = RPC_VERSION
    started_at: float
    at: float
    #: The broker drops the report when it is so old; None: it may have waited for ever.
    expires_s: float | None = None
    hypervisor: Hypervisor | None = None
    instances: tuple[InstanceRecord, ...] | None = None
    #: Jobs that the agent's journal holds open or whose outcome the API has not confirmed; goes
    #: with the complete list. An accepted job that is missing here is one the agent has lost.
    open_jobs: tuple[str, ...] | None = None


def disk_image_id(root_image_id: str, disk: str) -> str:
    """Return the id of the image of another disk, known to both daemons beforehand."""
    return str(uuid.uuid5(uuid.UUID(root_image_id), f"stillframe-disk-{disk}"))


def second_image_id(image_id: str) -> str:
    """Return the id of the image that takes the place of one that failed its verification."""
    return str(uuid.uuid5(uuid.UUID(image_id), "stillframe-again"))


def _require_uuid(name: str, value: str) -> None:
    try:
        uuid.UUID(value)
    except ValueError:
        raise MalformedMessage(f"{name} must be a UUID, not {value!r}") from None


def _require_limit(name: str, limit: int | None) -> None:
    if limit is not None and not 0 <= limit <= LIMIT_MAX:
        how = "negative" if limit < 0 else f"above {LIMIT_MAX}"
        raise MalformedMessage(f"{name} must not be {how}, not {limit!r}")
