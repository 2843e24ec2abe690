# SPDX-License-Identifier: Apache-2.0
"""What other services of the cloud call the API for, on topic `stillframe-api`, and its answer.

Plain Python, like `messages`; docs/rpc.md describes the methods.
"""

from __future__ import annotations

import dataclasses
import uuid

from common.errors import MalformedMessage
from common.messages import (
    InstanceRef,
    PowerRequest,
    SnapshotOptions,
    require_backup,
    require_uuid,
)
from common.states import JobState
from common.wire import Message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotCall(Message):
    """Arguments of `snapshot_instance`; without a `job_id` each call is a job of its own.

    The API makes the image's record, so that it is certain whose it is and what may
    be removed if the job fails: an `image_id` is refused.
    """

    instance: InstanceRef
    name: str
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    options: SnapshotOptions = dataclasses.field(default_factory=SnapshotOptions)
    job_id: str = ""
    image_id: str | None = None

    def __post_init__(self) -> None:
        _normalize_job_id(self)
        if self.image_id is not None:
            raise MalformedMessage(
                "image_id is not taken here: the answer names the image; to fill a record of "
                "your own, cast to the agent of the instance's host"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BackupCall(SnapshotCall):
    """Arguments of `backup_instance`: those of a snapshot, and how many of its type are kept."""

    backup_type: str
    rotation: int

    def __post_init__(self) -> None:
        SnapshotCall.__post_init__(self)
        require_backup(self.backup_type, self.rotation)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PowerCall(Message):
    """Arguments of `pause_instance`, `reboot_instance` and the like."""

    instance: InstanceRef
    job_id: str = ""
    reboot_type: str = "SOFT"

    def __post_init__(self) -> None:
        _normalize_job_id(self)
        if self.reboot_type not in PowerRequest.CHOICES:
            raise MalformedMessage(f"reboot_type must be SOFT or HARD, not {self.reboot_type!r}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RebuildCall(Message):
    """Arguments of `rebuild_instance`; without a `job_id` each call is a job of its own."""

    instance: InstanceRef
    image_id: str
    job_id: str = ""

    def __post_init__(self) -> None:
        require_uuid("image_id", self.image_id)
        _normalize_job_id(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CreateCall(Message):
    """Arguments of `create_instance`; without a `job_id` each call makes another instance.

    It makes one, which its answer names: more than one of `min_count` or `max_count` is refused.
    """

    name: str
    image_id: str
    #: Its id, which is its name.
    flavor: str
    networks: tuple[str, ...] = ()
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    job_id: str = ""
    min_count: int = 1
    max_count: int = 1

    def __post_init__(self) -> None:
        require_uuid("image_id", self.image_id)
        _normalize_job_id(self)
        if (self.min_count, self.max_count) != (1, 1):
            raise MalformedMessage(
                "min_count and max_count can only be 1 here: a call makes one instance, which "
                "its answer names; call once for each"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeleteCall(Message):
    """Arguments of `delete_instance`; a repeated call is answered with the deletion at work."""

    instance: InstanceRef


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobCall(Message):
    """Arguments of `show_job` and `cancel_job`."""

    job_id: str

    def __post_init__(self) -> None:
        _normalize_job_id(self)
        if not self.job_id:
            raise MalformedMessage("job_id must be a UUID, not ''")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallError(Message):
    """Why a call was refused: `message` is for a person, and safe to show to a tenant."""

    code: str
    message: str
    retryable: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswer(Message):
    """Answer to every call: the job as it stands, or `error`."""

    job_id: str | None = None
    image_id: str | None = None
    #: The instance that the job is of.
    instance_uuid: str | None = None
    state: JobState | None = None
    #: Percent.
    progress: int = 0
    #: Why the job ended as it did.
    reason: str | None = None
    reason_code: str | None = None
    error: CallError | None = None


def _normalize_job_id(call: SnapshotCall | PowerCall | RebuildCall | CreateCall | JobCall) -> None:
    """Write the id as ledgers do: one id in two spellings is one job."""
    if call.job_id:
        try:
            object.__setattr__(call, "job_id", str(uuid.UUID(call.job_id)))
        except ValueError:
            raise MalformedMessage(f"job_id must be a UUID, not {call.job_id!r}") from None
