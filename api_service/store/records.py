# SPDX-License-Identifier: Apache-2.0
"""What the rest of the API sees of the database: frozen values, no rows."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from sqlalchemy import Row

from api_service.store.models import AgentRow, InstanceRow, JobRow
from api_service.store.readable import UNREADABLE, tell_once
from common import clock
from common.messages import InstanceRef
from common.reports import (
    CaptureFigures,
    DiskImage,
    Flavor,
    Hypervisor,
    JobAccepted,
    JobOutcome,
    StepTime,
)
from common.states import DISK_KINDS, JobKind, JobState, PowerState, VmState

_ID_MAX = 36


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenJobs:
    """A complete list of an agent's open jobs: `at` is its own time, `taken_at` ours."""

    jobs: frozenset[str]
    at: dt.datetime
    taken_at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A compute agent; whether it lives is for `agents` to say."""

    host: str
    agent_id: str | None
    release: str
    rpc_version: str
    started_at: dt.datetime
    first_seen_at: dt.datetime
    last_seen_at: dt.datetime
    clock_offset_s: float | None
    hypervisor: Hypervisor | None
    #: The two newest lists at the most; none of an agent that sends none.
    open_jobs: tuple[OpenJobs, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """An instance as announced, and what a job does to it."""

    uuid: str
    host: str
    name: str
    domain_name: str
    project_id: str
    user_id: str
    flavor: Flavor
    image_ref: str | None
    image_properties: dict[str, str]
    root_device_name: str | None
    power_state: PowerState
    vm_state: VmState
    task_state: str | None
    description: str | None
    hostname: str | None
    access_ip_v4: str | None
    access_ip_v6: str | None
    disk_config: str | None
    #: What its user wrote on it.
    metadata: dict[str, str]
    locked_by: str | None
    locked_reason: str | None
    in_error: bool
    fault: str | None = None
    made_here: bool = False
    launched_at: dt.datetime | None = None
    reservation_id: str = ""
    launch_index: int = 0
    job_id: str | None
    progress: int
    created_at: dt.datetime
    updated_at: dt.datetime
    #: None: it exists.
    deleted_at: dt.datetime | None

    @property
    def is_unlaunched(self) -> bool:
        """It was asked for here, and no host has it yet, or any more."""
        return self.made_here and self.launched_at is None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """An instance as one of those that occupy its host."""

    uuid: str
    name: str
    flavor: Flavor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job of the ledger."""

    id: str
    kind: JobKind
    state: JobState
    instance_uuid: str
    project_id: str | None
    user_id: str | None
    host: str
    image_id: str
    options: dict[str, Any]
    context: dict[str, Any]
    castable: bool
    step: str | None
    bytes_done: int
    bytes_total: int
    rate_bytes_s: float
    eta_s: float | None
    reason: str | None
    reason_code: str | None
    size_bytes: int | None
    sha512: str | None
    capture: CaptureFigures | None
    steps: tuple[StepTime, ...]
    images: tuple[DiskImage, ...]
    created_at: dt.datetime
    deadline_at: dt.datetime
    cast_at: dt.datetime | None
    accepted_at: dt.datetime | None
    reported_at: dt.datetime | None
    progress_at: dt.datetime | None
    limit_due: bool
    discard_image: bool
    cancel_asked_at: dt.datetime | None
    finished_at: dt.datetime | None
    #: Of a backup; `rotation` None: as its policy says.
    backup_type: str | None
    rotation: int | None
    policy_id: str | None
    rotation_due: bool
    #: Its images were removed by a rotation, or found gone.
    removed_at: dt.datetime | None

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The images that it made, the root disk's first; of an open job only that is known."""
        return tuple(image.image_id for image in self.images) or (self.image_id,)

    @property
    def instance(self) -> InstanceRef:
        """The instance as a cast names it."""
        return InstanceRef(
            uuid=self.instance_uuid, project_id=self.project_id, user_id=self.user_id
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BackupTerms:
    """What makes a snapshot a backup."""

    #: As its user calls it ("daily"); each type of an instance is rotated by itself.
    backup_type: str
    #: How many are kept, this one among them; None: as the policy `policy_id` says.
    rotation: int | None
    policy_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be reserved."""

    id: str
    kind: JobKind
    instance: Instance
    user_id: str | None
    image_id: str
    options: dict[str, Any]
    context: dict[str, Any]
    #: What was asked for, in Nova's words ("createImage").
    action: str
    task_state: str
    deadline_at: dt.datetime
    #: Nothing has to be made before it is cast.
    castable: bool = False
    #: How many such jobs the project may have open, this one among them; None: any number.
    max_open: int | None = None
    backup: BackupTerms | None = None


#: Told of a job as it was before (None: nobody knew of it) and as it is.
Listener = Callable[[Job | None, Job], None]


def is_id(text: str) -> bool:
    """Tell whether a word that came from outside fits where ids are kept."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return len(text) <= _ID_MAX


def agent(row: AgentRow) -> Agent:
    """Return the record of a row."""
    fields = _fields_of(Agent, row)
    try:
        fields["hypervisor"] = Hypervisor.from_wire(row.hypervisor) if row.hypervisor else None
        fields["open_jobs"] = tuple(map(_open_jobs, row.open_jobs or ()))
    except UNREADABLE as error:
        # It lives all the same, and its next reports replace them.
        tell_once(f"What the agent of host {row.host} told", f"{type(error).__name__}: {error}")
        fields |= {"hypervisor": None, "open_jobs": ()}
    return Agent(**fields)


def _open_jobs(one: Mapping[str, Any]) -> OpenJobs:
    return OpenJobs(
        jobs=frozenset(one["jobs"]),
        at=clock.from_epoch(one["at"]),
        taken_at=clock.from_epoch(one["taken_at"]),
    )


def instance(row: InstanceRow | Row[Any]) -> Instance:
    """Return the record of a row, as an object or as the database gave it."""
    fields = _fields_of(Instance, row, but={"metadata"})
    fields["metadata"] = dict(row.user_metadata or {})
    fields["flavor"] = Flavor.from_wire(row.flavor)
    fields["power_state"] = PowerState(row.power_state)
    fields["vm_state"] = VmState(row.vm_state)
    return Instance(**fields)


def job(row: JobRow) -> Job:
    """Return the record of a row."""
    fields = _fields_of(Job, row)
    fields["kind"], fields["state"] = JobKind(row.kind), JobState(row.state)
    fields["capture"] = CaptureFigures.from_wire(row.capture) if row.capture else None
    fields["steps"] = tuple(StepTime.from_wire(step) for step in row.steps)
    fields["images"] = tuple(DiskImage.from_wire(image) for image in row.images or ())
    return Job(**fields)


def options_of(report: JobAccepted | JobOutcome) -> dict[str, Any]:
    """Return what a report tells of what an agent was asked for by somebody else."""
    return {"image_id": report.image_id} if report.kind in DISK_KINDS else {}


def shown_by(outcome: JobOutcome) -> dict[str, Any]:
    """Return what of an instance an outcome changes, before its host's next report tells it."""
    is_rebuilt = outcome.state is JobState.DONE and outcome.kind in DISK_KINDS
    return {"image_ref": outcome.image_id} if is_rebuilt else {}


def _fields_of(kind: type[Any], row: object, but: Collection[str] = frozenset()) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _names(cast(Any, kind)) if name not in but}


@functools.cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))
