# SPDX-License-Identifier: Apache-2.0
"""The use case "take a snapshot of this instance": no HTTP, no SQL.

In this order, so that a crash between any two steps leaves something that the
reaper can see and finish or undo: check → reserve the instance and write the
job → create the image's record → let the dispatcher cast. A 202 is a promise.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import logging
import uuid
from collections.abc import Callable, Mapping

from oslo_utils import strutils

from api_service import images
from api_service.agents import Agents
from api_service.errors import BadRequest, Conflict
from api_service.images import ImageRecords
from api_service.quotas import Quotas
from api_service.store.ledger import Ledger
from api_service.store.records import BackupTerms, Instance, Job, NewJob
from common import clock
from common.context import RequestContext
from common.errors import DeadlinePassed, MalformedMessage, StillframeError
from common.messages import SnapshotOptions
from common.states import FIRST_TASK_STATE, SNAPSHOT_VM_STATES, JobKind

LOG = logging.getLogger(__name__)

#: What each kind is called where it is asked for (Nova's words).
ACTIONS = {JobKind.SNAPSHOT: "createImage", JobKind.BACKUP: "createBackup"}

_OPTION_PREFIX = "stillframe:"
#: How the value of each option is read from the text that metadata is.
_READERS: dict[str, Callable[[str], object]] = {
    "pause": str,
    "freeze": str,
    "disks": str,
    "incremental": functools.partial(strutils.bool_from_string, strict=True),
    "bandwidth_limit": int,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotWish:
    """What the caller asked for."""

    name: str
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: SnapshotOptions = dataclasses.field(default_factory=SnapshotOptions)
    #: It is a backup, then: see `backups`.
    backup: BackupTerms | None = None

    @property
    def kind(self) -> JobKind:
        """What kind of job comes of it."""
        return JobKind.BACKUP if self.backup else JobKind.SNAPSHOT

    @classmethod
    def of(cls, name: str, metadata: Mapping[str, str]) -> SnapshotWish:
        """Take the options out of a request's metadata: the keys that begin with `stillframe:`.

        Stock clients have no other way to say them. Raises BadRequest naming
        the key whose option does not exist or has no such value.
        """
        properties = {key: value for key, value in metadata.items() if not _is_option(key)}
        given = {
            key.removeprefix(_OPTION_PREFIX): value
            for key, value in metadata.items()
            if _is_option(key)
        }
        return cls(name=name, metadata=properties, options=_options(given))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """Requests snapshots; `accept_timeout_s` is how long an agent may take to accept."""

    ledger: Ledger
    agents: Agents
    images: ImageRecords
    accept_timeout_s: float
    quotas: Quotas = dataclasses.field(default_factory=Quotas)

    def request(
        self,
        caller: RequestContext,
        instance: Instance,
        wish: SnapshotWish,
        job_id: str | None = None,
    ) -> Job:
        """Make a job of a wish; it is cast by whoever the caller tells of it.

        It takes `job_id` for its own, if one is given; the caller sees to it that it is new.
        Raises Conflict or InstanceBusy (state), AgentUnavailable, BadRequest, OverQuota,
        ImageRefused, ImageServiceUnavailable or DeadlinePassed (Glance took longer
        than the job may wait); then nothing is left behind.
        """
        self.quotas.require_metadata(len(wish.metadata))
        _require_quiet(instance, ACTIONS[wish.kind])
        self.agents.require_up(instance.host)
        # Before anything is reserved: it may find fault with the metadata.
        type_ = wish.backup.backup_type if wish.backup else None
        record = images.snapshot_record(instance, caller, wish.name, wish.metadata, type_)
        image_id, job_id = str(uuid.uuid4()), job_id or str(uuid.uuid4())
        deadline = clock.now() + dt.timedelta(seconds=self.accept_timeout_s)
        job = self.ledger.reserve(
            NewJob(
                id=job_id,
                kind=wish.kind,
                instance=instance,
                user_id=caller.user_id,
                image_id=image_id,
                options=wish.options.to_wire(),
                context={**caller.to_dict(), "auth_token": None},
                action=ACTIONS[wish.kind],
                task_state=FIRST_TASK_STATE[wish.kind],
                deadline_at=deadline,
                max_open=self.quotas.open_jobs,
                backup=wish.backup,
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
        told = (caller.user_id, caller.project_id, wish.kind, image_id, wish.name, job_id)
        LOG.info("User %s of project %s asks for a %s: image %s (%s), job %s", *told)
        return job

    def _undo(self, job: Job, error: Exception) -> None:
        """Let the instance go; the record may have been made although the answer was lost.

        It is the reaper's to remove: a Glance that hangs must not hang this request twice.
        """
        reason = error.message if isinstance(error, StillframeError) else "the request failed"
        code = error.code if isinstance(error, StillframeError) else "internal_error"
        if self.ledger.fail(job.id, reason, code) is None:
            # The reaper was quicker, and may have looked before the record was there.
            self.ledger.discard(job.id)


def _is_option(key: str) -> bool:
    return key.startswith(_OPTION_PREFIX)


def _options(given: Mapping[str, str]) -> SnapshotOptions:
    read: dict[str, object] = {}
    for name, text in given.items():
        if name not in _READERS:
            known = ", ".join(_OPTION_PREFIX + one for one in _READERS)
            raise BadRequest(
                f"Invalid input for field/attribute metadata. Value: {_OPTION_PREFIX}{name}. "
                f"The options of a snapshot are {known}."
            )
        try:
            read[name] = _READERS[name](text)
        except ValueError as error:
            raise BadRequest(
                f"Invalid input for field/attribute metadata. Value: {_OPTION_PREFIX}{name}. "
                f"{error}"
            ) from None
    try:
        return SnapshotOptions.from_wire(read)
    except MalformedMessage as error:
        raise BadRequest(f"Invalid input for field/attribute metadata. {error}") from None


def _require_quiet(instance: Instance, action: str) -> None:
    """Raise Conflict, in Nova's words, unless a snapshot may be asked for now."""
    if instance.task_state is not None:
        raise Conflict(
            f"Cannot '{action}' instance {instance.uuid} while it is in task_state "
            f"{instance.task_state}"
        )
    if instance.vm_state not in SNAPSHOT_VM_STATES:
        raise Conflict(
            f"Cannot '{action}' instance {instance.uuid} while it is in vm_state "
            f"{instance.vm_state}"
        )
