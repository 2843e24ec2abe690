# SPDX-License-Identifier: Apache-2.0
"""What agents report to the API: messages like those of `messages`, the other way.

docs/rpc.md describes the methods that carry them.
"""

from __future__ import annotations

import dataclasses

from common.errors import MalformedMessage
from common.messages import RPC_VERSION, InstanceRef, require_backup, require_uuid
from common.messages import Flavor as Flavor
from common.states import ENDED, IMAGE_KINDS, JobKind, JobState, PowerState
from common.wire import Message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobAccepted(Message):
    """The agent has the job in its journal and will end it, whatever happens."""

    job_id: str
    kind: JobKind
    host: str
    instance: InstanceRef
    image_id: str
    #: Of a backup, as its request says them.
    backup_type: str | None = None
    rotation: int | None = None
    at: float

    def __post_init__(self) -> None:
        require_backup(self.backup_type or "", self.rotation)


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
    #: Of a backup, as its request says them.
    backup_type: str | None = None
    rotation: int | None = None
    accepted_at: float
    finished_at: float

    def __post_init__(self) -> None:
        if self.state not in ENDED:
            raise MalformedMessage(f"JobOutcome.state must be an end, not {str(self.state)!r}")
        if self.state is JobState.DONE and self.kind in IMAGE_KINDS:
            require_uuid("JobOutcome.image_id", self.image_id)
        require_backup(self.backup_type or "", self.rotation)


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
    #: Room for the disks of new instances; None: an older agent's.
    free_disk_gib: int | None = None
    #: Ids of libvirt's networks by their names; None: an older agent's.
    networks: dict[str, str] | None = None


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
    #: No report is older when it comes: the broker drops it. None: it may have waited for ever.
    expires_s: float | None = None
    hypervisor: Hypervisor | None = None
    instances: tuple[InstanceRecord, ...] | None = None
    #: Jobs that the agent's journal holds open or whose outcome the API has not confirmed; goes
    #: with the complete list. An accepted job that is missing here is one the agent has lost.
    open_jobs: tuple[str, ...] | None = None
