# SPDX-License-Identifier: Apache-2.0
"""What the agent does with a message: check, journal, acknowledge, return.

oslo.messaging has acknowledged the message to the broker before these methods
run, so each does no more than make the work durable, in milliseconds. Nothing
that a caller sends can crash the consumer: it is refused in the log and, where
the message names a job, in the ledger.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

from common import clock, context
from common.errors import (
    DeadlinePassed,
    JobCancelled,
    MalformedMessage,
    StillframeError,
    UnsupportedRpcVersion,
)
from common.messages import (
    InstanceRef,
    JobAdjust,
    JobCancel,
    JobRequest,
    backup_terms,
    method_of,
    request_from_wire,
)
from common.reports import JobAccepted, JobOutcome
from common.states import DISK_KINDS, IMAGE_KINDS, JobKind, JobState
from common.wire import Message
from compute_agent.jobs import Jobs
from compute_agent.journal import Journal, JournalUnavailable
from compute_agent.reporter import Reporter

LOG = logging.getLogger(__name__)

#: What a method that makes a job makes one of.
_KINDS = {method_of(kind): kind for kind in JobKind}

#: How an image has to do with what is asked.
_WAY = dict.fromkeys(IMAGE_KINDS, "to") | dict.fromkeys(DISK_KINDS, "of")

AnyMessage = TypeVar("AnyMessage", bound=Message)


class Endpoint:
    """RPC methods of topic `stillframe-compute`; docs/rpc.md is their contract."""

    def __init__(self, *, host: str, journal: Journal, jobs: Jobs, reporter: Reporter) -> None:
        self._host = host
        self._journal = journal
        self._jobs = jobs
        self._reporter = reporter

    def snapshot_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Take a snapshot of `instance` into the image `image_id` (see SnapshotRequest)."""
        self._take(caller, JobKind.SNAPSHOT, arguments)

    def backup_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Take a backup of `instance`: a snapshot of a type (see BackupRequest)."""
        self._take(caller, JobKind.BACKUP, arguments)

    def pause_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Stop the vCPUs of `instance` (see PowerRequest)."""
        self._take(caller, JobKind.PAUSE, arguments)

    def unpause_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Let the vCPUs of `instance` run on."""
        self._take(caller, JobKind.UNPAUSE, arguments)

    def start_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Switch `instance` on."""
        self._take(caller, JobKind.START, arguments)

    def stop_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Switch `instance` off; with `clean_shutdown` it may shut down by itself first."""
        self._take(caller, JobKind.STOP, arguments)

    def reboot_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Switch `instance` off and on again, as `reboot_type` says."""
        self._take(caller, JobKind.REBOOT, arguments)

    def create_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Make `instance` of the image `image_id` (see CreateRequest)."""
        self._take(caller, JobKind.CREATE, arguments)

    def delete_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """End `instance`, its disks and all (see DeleteRequest)."""
        self._take(caller, JobKind.DELETE, arguments)

    def verify_image(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Try out the image `image_id` (see VerifyRequest)."""
        self._take(caller, JobKind.VERIFY, arguments)

    def rebuild_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Make the root disk of `instance` anew of the image `image_id` (see RebuildRequest)."""
        self._take(caller, JobKind.REBUILD, arguments)

    def cancel_job(self, _caller: context.RequestContext, **arguments: Any) -> None:
        """End a job soon and undo what it did (see JobCancel); its outcome is reported."""
        message = self._read(JobCancel, arguments)
        if message is None:
            return
        why = JobCancelled("the job was cancelled")
        if not self._jobs.cancel(message.job_id, why):
            LOG.info("Job %s is not at work here; there is nothing to cancel", message.job_id)

    def adjust_job(self, _caller: context.RequestContext, **arguments: Any) -> None:
        """Give a running job another limit of its own (see JobAdjust)."""
        message = self._read(JobAdjust, arguments)
        if message is None:
            return
        # Written down first: an agent that has to go on with it obeys it, too.
        self._journal.note(message.job_id, bandwidth_limit=message.bandwidth_limit)
        if not self._jobs.adjust(message.job_id, message.bandwidth_limit):
            LOG.info("Job %s is not at work here; there is nothing to adjust", message.job_id)

    def refuse_unknown(
        self, caller: Mapping[str, Any], message: Mapping[str, Any], why: str
    ) -> None:
        """Answer a message of another major version, or an unknown method."""
        error = UnsupportedRpcVersion(f"this compute agent does not speak this request: {why}")
        kind = _KINDS.get(str(message.get("method")), JobKind.SNAPSHOT)
        self._refuse(context.from_wire(caller), kind, message.get("args") or {}, error)

    def _take(
        self, caller: context.RequestContext, kind: JobKind, arguments: Mapping[str, Any]
    ) -> None:
        try:
            request = request_from_wire(kind, arguments)
        except MalformedMessage as error:
            LOG.error("Refused a malformed %s: %s", method_of(kind), error)
            self._refuse(caller, kind, arguments, error)
            return
        caller.resource_uuid = request.instance.uuid
        with context.bound(caller):
            try:
                self._accept(caller, request)
            except JournalUnavailable:
                # Neither refused nor promised: the API casts it again until its deadline.
                LOG.warning("Job %s cannot be accepted now", request.job_id)

    def _read(self, kind: type[AnyMessage], arguments: Mapping[str, Any]) -> AnyMessage | None:
        try:
            return kind.from_wire(arguments)
        except MalformedMessage as error:
            LOG.error("Refused a malformed message: %s", error)
            return None

    def _accept(self, caller: context.RequestContext, request: JobRequest) -> None:
        is_late = request.deadline is not None and request.deadline < clock.epoch_s()
        if is_late and self._journal.find(request.job_id) is None:
            error = DeadlinePassed("the request reached the compute agent after its deadline")
            LOG.error("Refused job %s: %s", request.job_id, error)
            self._refuse(caller, request.kind, request.to_wire(), error)
            return
        if not self._journal.accept(request, {**caller.to_dict(), "auth_token": None}):
            LOG.info(
                "Job %s is known already; the repeated request changes nothing", request.job_id
            )
            self._acknowledge(caller, request)
            return
        LOG.info(
            "Accepted job %s: %s%s, asked by user %s of project %s",
            request.job_id,
            request.kind,
            f" {_WAY.get(request.kind, 'of')} image {request.image_id}" if request.image_id else "",
            caller.user_id,
            caller.project_id,
        )
        self._acknowledge(caller, request)
        entry = self._journal.find(request.job_id)
        if entry is not None:
            self._jobs.submit(entry)

    def _acknowledge(self, caller: context.RequestContext, request: JobRequest) -> None:
        message = JobAccepted(
            job_id=request.job_id,
            kind=request.kind,
            host=self._host,
            instance=request.instance,
            image_id=request.image_id,
            **backup_terms(request),
            at=clock.epoch_s(),
        )
        self._reporter.accepted(caller, message)

    def _refuse(
        self,
        caller: context.RequestContext,
        kind: JobKind,
        arguments: Mapping[str, Any],
        error: StillframeError,
    ) -> None:
        """Report an outcome for a request that never becomes a job, if it names one."""
        job_id = arguments.get("job_id")
        if not _is_uuid(job_id):
            return
        instance = arguments.get("instance")
        instance_uuid = instance.get("uuid") if isinstance(instance, Mapping) else None
        outcome = JobOutcome(
            job_id=str(job_id),
            kind=kind,
            host=self._host,
            instance=InstanceRef(uuid=str(instance_uuid or "")),
            image_id=str(arguments.get("image_id") or ""),
            state=JobState.ERROR,
            reason=error.message,
            reason_code=error.code,
            accepted_at=clock.epoch_s(),
            finished_at=clock.epoch_s(),
        )
        self._reporter.refused(caller, outcome)


def _is_uuid(value: object) -> bool:
    try:
        uuid.UUID(str(value))
    except ValueError:
        return False
    return True
