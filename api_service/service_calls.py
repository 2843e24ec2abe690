# SPDX-License-Identifier: Apache-2.0
"""What other services call the API for: the use cases of REST, over RPC topic `stillframe-api`.

A service that knows an instance, but not its host, calls here. Whom it acts for
stands in the context of its message, which is believed: whoever may write to the
broker is a service of the cloud. The policy asks the same of that user as over
REST. Whatever happens the caller gets an answer (CallAnswer), never a traceback.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from api_service import faults, microversions, powers, rebuilds, schemas, views
from api_service.backups import Backups, BackupWish
from api_service.dispatcher import Dispatcher
from api_service.errors import Conflict, TooManyRequests
from api_service.lifecycle import Lifecycle, ServerWish
from api_service.powers import Powers
from api_service.rebuilds import Rebuilds, RebuildWish
from api_service.schemas.create import create_server
from api_service.snapshots import Snapshots, SnapshotWish
from api_service.store.job_lists import JobQuery
from api_service.store.records import Instance, Job
from api_service.visibility import Visibility
from common import context
from common.calls import (
    BackupCall,
    CallAnswer,
    CallError,
    CreateCall,
    DeleteCall,
    JobCall,
    PowerCall,
    RebuildCall,
    SnapshotCall,
)
from common.context import RequestContext
from common.errors import InstanceBusy
from common.states import IMAGE_KINDS, JobKind

LOG = logging.getLogger(__name__)

_SNAPSHOT_RULE = "os_compute_api:servers:create_image"
_BACKUP_RULE = "os_compute_api:os-create-backup"
_BACKUP_BODY = ("name", "backup_type", "rotation", "metadata")

Work = Callable[["ServiceEndpoint", RequestContext, Mapping[str, Any]], Job]
Method = Callable[..., dict[str, Any]]


def _answered(name: str) -> Callable[[Work], Method]:
    """Make an RPC method of what returns a job or raises."""

    def decorate(work: Work) -> Method:
        @functools.wraps(work)
        def method(
            self: ServiceEndpoint, caller: RequestContext, **arguments: Any
        ) -> dict[str, Any]:
            with context.bound(caller):
                try:
                    answer = _answer_of(work(self, caller, arguments))
                    LOG.debug("RPC %s answered: job %s is %s", name, answer.job_id, answer.state)
                except Exception as error:
                    answer = CallAnswer(error=_refusal(name, error))
            return answer.to_wire()

        return method

    return decorate


def _changes_power(name: str, choose: Callable[[PowerCall], powers.Change]) -> Method:
    @_answered(name)
    def method(self: ServiceEndpoint, caller: RequestContext, arguments: Mapping[str, Any]) -> Job:
        call = PowerCall.from_wire(arguments)
        return self._change_power(caller, call, choose(call))

    return method


class ServiceEndpoint:
    """The methods that services call.

    `most_at_once` is how many snapshots may be asked for at a time: each waits for
    Glance, and the agents' reports are read by the same threads.
    """

    def __init__(
        self,
        *,
        visibility: Visibility,
        snapshots: Snapshots,
        backups: Backups,
        powers: Powers,
        rebuilds: Rebuilds,
        lifecycle: Lifecycle,
        dispatcher: Dispatcher,
        most_at_once: int,
    ) -> None:
        self._visibility = visibility
        self._authorizer = visibility.authorizer
        self._ledger = visibility.ledger
        self._snapshots = snapshots
        self._backups = backups
        self._powers = powers
        self._rebuilds = rebuilds
        self._lifecycle = lifecycle
        self._dispatcher = dispatcher
        self._room = threading.BoundedSemaphore(most_at_once)

    @_answered("snapshot_instance")
    def snapshot_instance(self, caller: RequestContext, arguments: Mapping[str, Any]) -> Job:
        """Take a snapshot (SnapshotCall)."""
        call = SnapshotCall.from_wire(arguments)
        schemas.validate(
            schemas.CREATE_IMAGE, {"createImage": {"name": call.name, "metadata": call.metadata}}
        )
        instance = self._visibility.instance(caller, call.instance.uuid, _SNAPSHOT_RULE)
        self._authorizer.require_limit(caller, call.options.bandwidth_limit, instance.project_id)
        wish = SnapshotWish(name=call.name, metadata=call.metadata, options=call.options)

        def ask() -> Job:
            with self._place():
                return self._snapshots.request(caller, instance, wish, call.job_id or None)

        return self._once(call.job_id, instance, JobKind.SNAPSHOT, ask)

    @_answered("rebuild_instance")
    def rebuild_instance(self, caller: RequestContext, arguments: Mapping[str, Any]) -> Job:
        """Make an instance's disk anew of an image (RebuildCall)."""
        call = RebuildCall.from_wire(arguments)
        instance = self._visibility.instance(caller, call.instance.uuid, rebuilds.RULE)
        wish = RebuildWish(image_id=call.image_id)

        def ask() -> Job:
            is_admin = self._authorizer.is_admin(caller)
            powers.require_unlocked(instance, is_admin=is_admin)
            with self._place():
                return self._rebuilds.request(
                    caller, instance, wish, is_admin=is_admin, job_id=call.job_id or None
                )

        return self._once(call.job_id, instance, JobKind.REBUILD, ask)

    @_answered("backup_instance")
    def backup_instance(self, caller: RequestContext, arguments: Mapping[str, Any]) -> Job:
        """Take a backup (BackupCall)."""
        call = BackupCall.from_wire(arguments)
        wish = BackupWish(
            name=call.name,
            backup_type=call.backup_type,
            rotation=call.rotation,
            metadata=call.metadata,
            options=call.options,
        )
        body = {name: getattr(wish, name) for name in _BACKUP_BODY}
        schemas.validate(schemas.CREATE_BACKUP, {"createBackup": body})
        instance = self._visibility.instance(caller, call.instance.uuid, _BACKUP_RULE)
        self._authorizer.require_limit(caller, call.options.bandwidth_limit, instance.project_id)

        def ask() -> Job:
            with self._place():
                return self._backups.request(caller, instance, wish, call.job_id or None)

        return self._once(call.job_id, instance, JobKind.BACKUP, ask)

    pause_instance = _changes_power("pause_instance", lambda _: powers.PAUSE)
    unpause_instance = _changes_power("unpause_instance", lambda _: powers.UNPAUSE)
    start_instance = _changes_power("start_instance", lambda _: powers.START)
    stop_instance = _changes_power("stop_instance", lambda _: powers.STOP)
    reboot_instance = _changes_power(
        "reboot_instance", lambda call: powers.REBOOTS[call.reboot_type]
    )

    @_answered("create_instance")
    def create_instance(self, caller: RequestContext, arguments: Mapping[str, Any]) -> Job:
        """Make an instance of an image (CreateCall)."""
        call = CreateCall.from_wire(arguments)
        schemas.validate(create_server(microversions.MAXIMUM), _server_body(call))
        self._authorizer.require(caller, "os_compute_api:servers:create")
        known = self._ledger.find(call.job_id) if call.job_id else None
        if known is not None:
            if (known.kind, known.project_id) != (JobKind.CREATE, caller.project_id):
                raise _taken(call.job_id)
            return known
        wish = ServerWish(
            name=call.name,
            image_id=call.image_id,
            flavor_id=call.flavor,
            networks=call.networks,
            metadata=call.metadata,
        )
        is_admin = self._authorizer.is_admin(caller)
        with self._place():
            (job,) = self._lifecycle.create(
                caller, wish, is_admin=is_admin, job_id=call.job_id or None
            ).jobs
        if job.castable:
            self._dispatcher.poke(job.id)
        return job

    @_answered("delete_instance")
    def delete_instance(self, caller: RequestContext, arguments: Mapping[str, Any]) -> Job:
        """Delete an instance (DeleteCall)."""
        call = DeleteCall.from_wire(arguments)
        rule = "os_compute_api:servers:delete"
        instance = self._visibility.instance(caller, call.instance.uuid, rule)
        powers.require_unlocked(instance, is_admin=self._authorizer.is_admin(caller))
        for job_id in self._lifecycle.delete(caller, instance):
            self._dispatcher.poke(job_id)
        query = JobQuery(instance_uuid=instance.uuid, kinds=(JobKind.DELETE,), limit=1)
        (newest,) = self._ledger.jobs(query)
        return newest

    @_answered("show_job")
    def show_job(self, caller: RequestContext, arguments: Mapping[str, Any]) -> Job:
        """Tell how a job stands (JobCall)."""
        call = JobCall.from_wire(arguments)
        return self._visibility.job(caller, call.job_id, "stillframe:jobs:show")

    @_answered("cancel_job")
    def cancel_job(self, caller: RequestContext, arguments: Mapping[str, Any]) -> Job:
        """End a job (JobCall); one that has ended is no error."""
        call = JobCall.from_wire(arguments)
        job = self._visibility.job(caller, call.job_id, "stillframe:jobs:cancel")
        cancelled = self._ledger.cancel(job.id)
        if cancelled is not None:
            LOG.info("User %s cancels job %s", caller.user_id, job.id)
            self._dispatcher.poke(job.id)
        return cancelled or self._ledger.find(job.id) or job

    def _change_power(self, caller: RequestContext, call: PowerCall, change: powers.Change) -> Job:
        instance = self._visibility.instance(caller, call.instance.uuid, change.rule)

        def ask() -> Job:
            is_admin = self._authorizer.is_admin(caller)
            powers.require_unlocked(instance, is_admin=is_admin)
            return self._powers.request(caller, instance, change, call.job_id or None)

        return self._once(call.job_id, instance, change.kind, ask)

    def _once(self, job_id: str, instance: Instance, kind: JobKind, ask: Callable[[], Job]) -> Job:
        """Ask for a job, unless there is one of that id: then this call is a repetition."""
        known = self._known(job_id, instance, kind)
        if known is not None:
            return known
        try:
            job = ask()
        except (Conflict, InstanceBusy):
            # It may be the same call, which came twice at a time, that holds the instance.
            known = self._known(job_id, instance, kind)
            if known is None:
                raise
            return known
        self._dispatcher.poke(job.id)
        return job

    def _known(self, job_id: str, instance: Instance, kind: JobKind) -> Job | None:
        job = self._ledger.find(job_id) if job_id else None
        if job is not None and (job.instance_uuid, job.kind) != (instance.uuid, kind):
            raise _taken(job_id)
        return job

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._room.acquire(blocking=False):
            raise TooManyRequests("Too many images are being asked about at a time; try again.")
        try:
            yield
        finally:
            self._room.release()


def _taken(job_id: str) -> Conflict:
    return Conflict(f"The job id {job_id} is taken: choose a new one for each request.")


def _server_body(call: CreateCall) -> dict[str, Any]:
    """Return a call as REST has it, to be held against the same schema."""
    server = {
        "name": call.name,
        "imageRef": call.image_id,
        "flavorRef": call.flavor,
        "networks": [{"uuid": network} for network in call.networks],
        "metadata": call.metadata,
    }
    return {"server": server}


def _answer_of(job: Job) -> CallAnswer:
    return CallAnswer(
        job_id=job.id,
        # Not the one that something is made of.
        image_id=(job.image_id or None) if job.kind in IMAGE_KINDS else None,
        instance_uuid=job.instance_uuid,
        state=job.state,
        progress=views.percent(job),
        reason=job.reason,
        reason_code=job.reason_code,
    )


def _refusal(name: str, error: Exception) -> CallError:
    told = faults.words_of(error)
    if told is error:
        LOG.warning("Refused RPC %s: %s: %s", name, told.code, told)
    else:
        LOG.error("RPC %s failed", name, exc_info=error)
    return CallError(code=told.code, message=told.message, retryable=told.retryable)
