# SPDX-License-Identifier: Apache-2.0
"""The messages between the daemons: the wire contract, in plain Python.

Each message is a frozen dataclass; `to_wire` makes the JSON-able dict that
oslo.messaging sends, `from_wire` checks and rebuilds it. Unknown fields are
ignored (a newer sender may add some), a missing or wrong one raises
MalformedMessage naming the field. docs/rpc.md describes the methods that carry
these messages; HISTORY says which version added what.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
import uuid
from collections.abc import Mapping
from typing import Any, Self

from common.errors import MalformedMessage
from common.states import ENDED, JobKind, JobState, PowerState

#: The agents' topic (server = host) and the API's.
COMPUTE_TOPIC = "stillframe-compute"
API_TOPIC = "stillframe-api"

#: MB/s: what no job's limit is above.
LIMIT_MAX = 1_000_000

#: Newest version of both interfaces; minor versions only add.
RPC_VERSION = "1.1"
HISTORY = {
    "1.0": "snapshot_instance; host_report, job_accepted, job_progress, job_finished",
    "1.1": "cancel_job, adjust_job; more options of a snapshot, an image for each disk",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Base of what crosses the wire."""

    def to_wire(self) -> dict[str, Any]:
        """Return the message as a dict of JSON types."""
        return {
            field.name: _encode(getattr(self, field.name)) for field in dataclasses.fields(self)
        }

    @classmethod
    def from_wire(cls, wire: object) -> Self:
        """Rebuild a message; raise MalformedMessage naming the field that does not fit."""
        return typing.cast(Self, _decode(cls, wire, cls.__name__))


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
    accepted_at: float
    finished_at: float

    def __post_init__(self) -> None:
        if self.state not in ENDED:
            raise MalformedMessage(f"JobOutcome.state must be an end, not {str(self.state)!r}")
        if self.state is JobState.DONE:
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostReport(Message):
    """An agent's heartbeat.

    `instances` is the complete list, sent at start, on any change and every few
    heartbeats; None in the heartbeats between, which change nothing but the
    time last seen.
    """

    host: str
    release: str
    rpc_version: str = RPC_VERSION
    started_at: float
    at: float
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


def _encode(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_wire()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _decode(kind: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return _decode(inner, value, name)
    if origin is tuple:
        _require(isinstance(value, list | tuple), name, "a list", value)
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, one, f"{name}[{at}]") for at, one in enumerate(value))
    if origin is dict:
        _require(isinstance(value, Mapping), name, "an object", value)
        return {str(key): _decode(str, one, f"{name}.{key}") for key, one in value.items()}
    return _decode_plain(kind, value, name)


def _decode_plain(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_message(typing.cast(type[Message], kind), value, name)
    if issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            allowed = ", ".join(str(member.value) for member in kind)
            raise MalformedMessage(f"{name} must be one of {allowed}, not {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(is_kind, name, f"of type {kind.__name__}", value)
    return value


def _decode_message(kind: type[Message], value: Any, name: str) -> Message:
    _require(isinstance(value, Mapping), name, "an object", value)
    hints = typing.get_type_hints(kind)
    known = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            inner = f"{name}.{field.name}"
            known[field.name] = _decode(hints[field.name], value[field.name], inner)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise MalformedMessage(f"{name}.{field.name} is missing")
    return kind(**known)


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise MalformedMessage(f"{name} must be {expected}, not {type(value).__name__}")
