# SPDX-License-Identifier: Apache-2.0
"""Runs accepted jobs: a bounded number at a time, one at a time for each instance.

The endpoint and recovery submit journal entries; each is worked on in a thread
with its request's context bound, and ends in an outcome that the reporter
delivers, whatever the work raised. A job that has not begun when the agent
stops stays in the journal for the next start, and so does a change of power
that the stop interrupts.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from common import clock, context
from common.errors import CaptureFailed, JobCancelled, JobInterrupted, StillframeError
from common.messages import JobRequest, RebuildRequest, SnapshotRequest, backup_terms
from common.reports import CaptureFigures, DiskImage, JobOutcome, JobProgress, StepTime
from common.states import IMAGE_KINDS, QUICK_KINDS, JobKind, JobState, PowerState, TaskState
from compute_agent.journal import Entry
from compute_agent.stream.throttle import Throttle

LOG = logging.getLogger(__name__)

#: Left of the time to stop, for undoing what was interrupted.
_UNDO_S = 5.0
_LOOK_S = 0.1
#: Power states that change side by side: guests that do not obey their button, for a minute
#: each, must not keep those of others waiting. The threads only wait.
_QUICK_JOBS = 16
MB = 10**6
_ALL_BUT_DELETIONS = frozenset(JobKind) - {JobKind.DELETE}


class Reports(Protocol):
    """Where a job tells how it goes (the reporter)."""

    def progress(self, request_context: context.RequestContext, progress: JobProgress) -> None:
        """Pass on a job's progress; may be coalesced or lost."""

    def finished(self, request_context: context.RequestContext, outcome: JobOutcome) -> None:
        """Record an outcome durably and see that the API gets it."""


class Job:
    """One entry at work: what its pipeline may ask, and where it tells how it goes."""

    def __init__(self, entry: Entry, host: str, reports: Reports) -> None:
        self.entry = entry
        self.instance = entry.request.instance
        self.context = context.from_wire(entry.context, entry.request.instance.uuid)
        #: Set when the work must end; `why_stopped` says whether by request or shutdown.
        self.stopped = threading.Event()
        self.why_stopped: StillframeError = JobCancelled("the job was cancelled")
        self.result = Result()
        #: This job's own bound on what it reads, below the host's.
        self.throttle = Throttle(_limit(entry) * MB)
        #: And what is left of that while the guest's own writes suffer; 0 is no bound.
        self.courtesy = Throttle(0)
        self._host = host
        self._reports = reports
        self._steps: list[StepTime] = []

    @property
    def request(self) -> SnapshotRequest:
        """What a snapshot is asked to be; only the work on snapshots asks for it."""
        request = self.entry.request
        if not isinstance(request, SnapshotRequest):
            raise TypeError(f"job {self.entry.job_id} is no snapshot")
        return request

    def stop(self, why: StillframeError) -> None:
        """Ask the work to end soon, with `why` as its reason."""
        self.why_stopped = why
        self.stopped.set()

    def raise_if_stopped(self) -> None:
        """Raise the reason if the work was asked to end."""
        if self.stopped.is_set():
            raise self.why_stopped

    @property
    def bandwidth_limit(self) -> int:
        """Its own limit at the moment, in MB/s; 0 is none."""
        return self.throttle.rate_bytes_s // MB

    def adjust(self, bandwidth_limit: int) -> None:
        """Obey another limit of its own from now on, in MB/s; 0 is none."""
        self.throttle.set_rate(bandwidth_limit * MB)
        LOG.info("Job %s may read %d MB/s from now on", self.entry.job_id, bandwidth_limit)

    def begin_step(self, name: str) -> None:
        """Note that a step begins (and the one before it ended)."""
        self._end_step()
        self._steps.append(StepTime(name=name, began_at=clock.epoch_s()))

    def tell(
        self,
        task_state: TaskState | None,
        *,
        bytes_done: int = 0,
        bytes_total: int = 0,
        rate_bytes_s: float = 0.0,
        eta_s: float | None = None,
    ) -> None:
        """Report where the job stands."""
        self._reports.progress(
            self.context,
            JobProgress(
                job_id=self.entry.job_id,
                host=self._host,
                step=self._steps[-1].name if self._steps else "prepare",
                task_state=task_state,
                bytes_done=bytes_done,
                bytes_total=bytes_total,
                rate_bytes_s=rate_bytes_s,
                eta_s=eta_s,
                at=clock.epoch_s(),
            ),
        )

    def finish(self, error: StillframeError | None) -> JobOutcome:
        """Make the outcome of the work, record it and see it on its way."""
        self._end_step()
        root = self.result.images[0] if self.result.images else None
        outcome = JobOutcome(
            job_id=self.entry.job_id,
            kind=self.entry.request.kind,
            host=self._host,
            instance=self.instance,
            image_id=root.image_id if root else self.entry.request.image_id,
            state=_state_of(error),
            reason=error.message if error else None,
            reason_code=error.code if error else None,
            size_bytes=root.size_bytes if root else None,
            sha512=root.sha512 if root else None,
            capture=self.result.capture,
            images=tuple(self.result.images),
            steps=tuple(self._steps),
            power_state=self.result.power_state,
            **backup_terms(self.entry.request),
            accepted_at=self.entry.accepted_at,
            finished_at=clock.epoch_s(),
        )
        self._reports.finished(self.context, outcome)
        return outcome

    def _end_step(self) -> None:
        if self._steps and self._steps[-1].ended_at is None:
            self._steps[-1] = dataclasses.replace(self._steps[-1], ended_at=clock.epoch_s())


@dataclasses.dataclass(slots=True)
class Result:
    """What a pipeline found out so far; whatever is known goes into the outcome."""

    capture: CaptureFigures | None = None
    #: The root disk's first.
    images: list[DiskImage] = dataclasses.field(default_factory=list)
    power_state: PowerState | None = None


#: What does the jobs of a kind.
Runner = Callable[["Job"], None]


class Jobs:
    """The agent's working loop; `runners` do the jobs, each kind's its own.

    `limit` bounds what moves disks and images. What only changes a power state,
    and a deletion, never waits for those.
    """

    name = "jobs"

    def __init__(
        self, runners: Mapping[JobKind, Runner], *, host: str, limit: int, reports: Reports
    ) -> None:
        self._runners = runners
        self._host = host
        self._reports = reports
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix="job")
        self._quick_pool = ThreadPoolExecutor(_QUICK_JOBS, thread_name_prefix="power")
        self._lock = threading.Lock()
        #: Entries of each instance: the first is at work (or waits for a thread).
        self._by_instance: dict[str, deque[Entry]] = {}
        self._running: dict[str, Job] = {}
        #: Jobs that were cancelled, and so have ended, before they began.
        self._cancelled: set[str] = set()
        #: Why jobs that wait to be gone on with are to end.
        self._stopped_early: dict[str, StillframeError] = {}
        #: Limits of their own that jobs got before they began, in MB/s.
        self._limits: dict[str, int] = {}
        self._stopping = False

    def start(self) -> None:
        """Nothing to do: threads come with the work."""

    def submit(self, entry: Entry) -> None:
        """Work on an entry as soon as a thread and its instance are free."""
        if entry.request.kind is JobKind.DELETE:
            # Nothing that is done for it is wanted any more.
            self.instance_deleted(entry.request.instance.uuid)
        with self._lock:
            waiting = self._by_instance.setdefault(entry.request.instance.uuid, deque())
            waiting.append(entry)
            if len(waiting) == 1:
                self._hand_over(entry)

    def cancel(self, job_id: str, why: StillframeError) -> bool:
        """Ask a job to end, whether it runs or waits; False if it does neither here."""
        with self._lock:
            job = self._running.get(job_id)
            waiting = self._waiting(job_id) if job is None else None
            has_begun = waiting is not None and waiting.step is not None
            if waiting is not None and has_begun:
                # An earlier agent left something to undo: the work ends as soon as it goes on.
                self._stopped_early[job_id] = why
            elif waiting is not None:
                self._cancelled.add(job_id)
        if job is not None:
            job.stop(why)
        elif waiting is not None and not has_begun:
            # Its turn may be hours away; nothing was done for it that needs undoing.
            self._end_unbegun(waiting, why)
        return job is not None or waiting is not None

    def busy(self) -> frozenset[str]:
        """Return the instances that have jobs, at work or waiting."""
        with self._lock:
            return frozenset(self._by_instance)

    def instance_deleted(self, instance_uuid: str) -> None:
        """End what is done for an instance that was deleted."""
        why = JobCancelled("the instance was deleted meanwhile")
        self._stop_all_of(instance_uuid, why, kinds=_ALL_BUT_DELETIONS)

    def instance_out_of_space(self, instance_uuid: str) -> None:
        """End what keeps what a guest overwrites: QEMU stopped it, a write of it found no room."""
        self._stop_all_of(
            instance_uuid,
            CaptureFailed(
                "the host ran out of space for what the instance overwrote during the snapshot; "
                "try again later, or when the instance writes less"
            ),
            kinds=IMAGE_KINDS,
        )

    def adjust(self, job_id: str, bandwidth_limit: int) -> bool:
        """Give a job another limit, in MB/s; False if it neither runs nor waits here."""
        with self._lock:
            job = self._running.get(job_id)
            is_waiting = job is None and self._waiting(job_id) is not None
            if is_waiting:
                self._limits[job_id] = bandwidth_limit
        if job is not None:
            job.adjust(bandwidth_limit)
        return job is not None or is_waiting

    def stop(self, deadline: float) -> None:
        """Begin no more jobs, wait for the running ones, then interrupt what is left."""
        with self._lock:
            self._stopping = True
        for pool in (self._pool, self._quick_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        if not self._wait_until_idle(deadline - _UNDO_S):
            for job in self._still_running():
                LOG.warning("Interrupting job %s: the agent stops", job.entry.job_id)
                kind = job.entry.request.kind
                job.stop(JobInterrupted(f"the compute agent was stopped during the {kind}"))
            self._wait_until_idle(deadline)

    def _stop_all_of(
        self,
        instance_uuid: str,
        why: StillframeError,
        kinds: Collection[JobKind] = frozenset(JobKind),
    ) -> None:
        with self._lock:
            entries = self._by_instance.get(instance_uuid, ())
            job_ids = [entry.job_id for entry in entries if entry.request.kind in kinds]
        for job_id in job_ids:
            self.cancel(job_id, why)

    def _hand_over(self, entry: Entry) -> None:
        if not self._stopping:
            is_quick = entry.request.kind in QUICK_KINDS
            (self._quick_pool if is_quick else self._pool).submit(self._work, entry)

    def _waiting(self, job_id: str) -> Entry | None:
        """Return the entry of a job that waits; the lock is held, the job does not run."""
        entries = (entry for waiting in self._by_instance.values() for entry in waiting)
        found = next((entry for entry in entries if entry.job_id == job_id), None)
        return None if job_id in self._cancelled else found

    def _end_unbegun(self, entry: Entry, why: StillframeError) -> None:
        job = Job(entry, self._host, self._reports)
        with context.bound(job.context):
            LOG.info("Job %s ends before it began: %s", entry.job_id, why.message)
            job.finish(why)

    def _work(self, entry: Entry) -> None:
        job = Job(entry, self._host, self._reports)
        with self._lock:
            is_cancelled = entry.job_id in self._cancelled
            self._cancelled.discard(entry.job_id)
            limit = self._limits.pop(entry.job_id, _limit(entry))
            why = self._stopped_early.pop(entry.job_id, None)
            if not is_cancelled:
                self._running[entry.job_id] = job
        if is_cancelled:
            self._take_next(entry)
            return
        if limit != _own_limit(entry.request):
            job.adjust(limit)  # and says so
        if why is not None:
            job.stop(why)
        try:
            with context.bound(job.context):
                error = self._outcome_error(job)
                if _goes_on_later(job, error):
                    LOG.info("Job %s goes on when the agent starts again", entry.job_id)
                else:
                    job.finish(error)
        except Exception:
            # The journal keeps the entry open: the next start ends it properly.
            LOG.exception("The outcome of job %s could not be recorded", entry.job_id)
        finally:
            self._take_next(entry)

    def _outcome_error(self, job: Job) -> StillframeError | None:
        kind = job.entry.request.kind
        try:
            self._runners[kind](job)
        except StillframeError as error:
            LOG.error("Job %s (%s) failed: %s", job.entry.job_id, kind, error.message)
            return error
        except Exception:
            LOG.exception("Job %s (%s) failed in an unforeseen way", job.entry.job_id, kind)
            return StillframeError(f"the {kind} failed inside the compute agent; ask the operator")
        return None

    def _take_next(self, entry: Entry) -> None:
        instance = entry.request.instance.uuid
        with self._lock:
            self._running.pop(entry.job_id, None)
            waiting = self._by_instance[instance]
            waiting.popleft()
            if waiting:
                self._hand_over(waiting[0])
            else:
                del self._by_instance[instance]

    def _still_running(self) -> list[Job]:
        with self._lock:
            return list(self._running.values())

    def _wait_until_idle(self, deadline: float) -> bool:
        while self._still_running():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_S)
        return True


def _goes_on_later(job: Job, error: StillframeError | None) -> bool:
    """Tell whether a change of power was interrupted: the guest may be on its way down.

    Only the next agent sees what came of that, and ends the job by it.
    """
    is_interrupted = error is job.why_stopped and isinstance(error, JobInterrupted)
    return is_interrupted and job.entry.request.kind in QUICK_KINDS


def _state_of(error: StillframeError | None) -> JobState:
    if error is None:
        return JobState.DONE
    return JobState.CANCELLED if isinstance(error, JobCancelled) else JobState.ERROR


def _limit(entry: Entry) -> int:
    """Return the MB/s that a job was allowed last: a change is in the journal."""
    return int(entry.facts.get("bandwidth_limit", _own_limit(entry.request)))


def _own_limit(request: JobRequest) -> int:
    """Return the MB/s that a request allows its job; 0 is no bound of its own."""
    if isinstance(request, RebuildRequest):
        return request.bandwidth_limit or 0
    return request.options.bandwidth_limit or 0 if isinstance(request, SnapshotRequest) else 0
