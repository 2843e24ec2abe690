# SPDX-License-Identifier: Apache-2.0
"""Jobs run bounded, one at a time for an instance, and every one ends in an outcome."""

from __future__ import annotations

import dataclasses
import threading
import time
import uuid
from collections.abc import Callable

import pytest

from common.errors import CaptureFailed, JobCancelled, StillframeError
from common.messages import (
    DeleteRequest,
    InstanceRef,
    JobRequest,
    PowerRequest,
    SnapshotRequest,
)
from common.states import JobKind, JobState
from compute_agent.jobs import MB, Job, Jobs
from compute_agent.journal import Entry, Journal
from tests.unit.compute_agent.conftest import RecordedReports, wait_for

NewRequest = Callable[..., SnapshotRequest]
LONG_S = 20.0


@pytest.fixture
def entry_of(journal: Journal) -> Callable[[JobRequest], Entry]:
    def accept(request: JobRequest) -> Entry:
        journal.accept(request, {})
        entry = journal.find(request.job_id)
        assert entry is not None
        return entry

    return accept


class Pipeline:
    """Holds each job until it is let go; counts who runs beside whom."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.running: list[str] = []
        self.most = 0

    def run(self, job: Job) -> None:
        with self.lock:
            assert job.instance.uuid not in self.running
            self.running.append(job.instance.uuid)
            self.most = max(self.most, len(self.running))
        self.began.release()
        while not self.go.acquire(timeout=0.02):
            job.raise_if_stopped()
        with self.lock:
            self.running.remove(job.instance.uuid)


def jobs_with(run: Callable[[Job], None], reports: RecordedReports, limit: int = 2) -> Jobs:
    return Jobs({JobKind.SNAPSHOT: run}, host="h", limit=limit, reports=reports)


def test_no_more_jobs_run_than_the_limit(
    reports: RecordedReports, new_request: NewRequest, entry_of: Callable[..., Entry]
) -> None:
    pipeline = Pipeline()
    jobs = jobs_with(pipeline.run, reports)
    for _ in range(4):
        jobs.submit(entry_of(new_request()))
    for _ in range(2):
        assert pipeline.began.acquire(timeout=LONG_S)
    pipeline.go.release(4)
    wait_for(lambda: len(reports.outcomes) == 4)
    assert pipeline.most == 2
    jobs.stop(time.monotonic() + LONG_S)


def test_jobs_of_one_instance_take_turns(
    reports: RecordedReports, new_request: NewRequest, entry_of: Callable[..., Entry]
) -> None:
    pipeline = Pipeline()  # asserts that it never sees one instance twice
    jobs = jobs_with(pipeline.run, reports)
    instance = new_request().instance.uuid
    for _ in range(3):
        jobs.submit(entry_of(new_request(instance)))
    pipeline.go.release(3)
    wait_for(lambda: len(reports.outcomes) == 3)
    assert {outcome.state for outcome in reports.outcomes} == {JobState.DONE}
    jobs.stop(time.monotonic() + LONG_S)


@pytest.mark.parametrize(
    ("raised", "state", "code"),
    [
        (CaptureFailed("no room"), JobState.ERROR, "capture_failed"),
        (JobCancelled("asked for"), JobState.CANCELLED, "cancelled"),
        (ZeroDivisionError("secret /path"), JobState.ERROR, "internal_error"),
    ],
    ids=["ours", "cancelled", "unforeseen"],
)
def test_whatever_the_work_raises_becomes_an_outcome(
    raised: Exception,
    state: JobState,
    code: str,
    reports: RecordedReports,
    new_request: NewRequest,
    entry_of: Callable[..., Entry],
) -> None:
    def run(_job: Job) -> None:
        raise raised

    jobs = jobs_with(run, reports)
    jobs.submit(entry_of(new_request()))
    wait_for(lambda: bool(reports.outcomes))
    (outcome,) = reports.outcomes
    assert (outcome.state, outcome.reason_code) == (state, code)
    assert "/path" not in (outcome.reason or ""), "nothing internal reaches a tenant"
    jobs.stop(time.monotonic() + LONG_S)


def test_a_cancelled_job_ends_with_the_reason_given(
    reports: RecordedReports, new_request: NewRequest, entry_of: Callable[..., Entry]
) -> None:
    pipeline = Pipeline()
    jobs = jobs_with(pipeline.run, reports)
    entry = entry_of(new_request())
    jobs.submit(entry)
    assert pipeline.began.acquire(timeout=LONG_S)
    assert jobs.cancel(entry.job_id, StillframeError("the disk is needed"))
    wait_for(lambda: bool(reports.outcomes))
    assert reports.outcomes[0].reason == "the disk is needed"
    jobs.stop(time.monotonic() + LONG_S)
    assert not jobs.cancel(entry.job_id, StillframeError("again"))


def test_a_job_that_waits_is_cancelled_at_once_and_never_begins(
    reports: RecordedReports, new_request: NewRequest, entry_of: Callable[..., Entry]
) -> None:
    """For a thread, or behind another job of its instance: its turn may be hours away."""
    pipeline = Pipeline()
    jobs = jobs_with(pipeline.run, reports, limit=1)
    running = entry_of(new_request())
    behind = entry_of(new_request(running.request.instance.uuid))
    other, last = entry_of(new_request()), entry_of(new_request())
    for entry in (running, behind, other, last):
        jobs.submit(entry)
    assert pipeline.began.acquire(timeout=LONG_S)
    for entry in (behind, other):
        assert jobs.cancel(entry.job_id, JobCancelled("not needed"))
        assert not jobs.cancel(entry.job_id, JobCancelled("again"))
    assert [outcome.job_id for outcome in reports.outcomes] == [behind.job_id, other.job_id]
    pipeline.go.release(2)
    wait_for(lambda: len(reports.outcomes) == 4)
    assert [outcome.job_id for outcome in reports.outcomes[2:]] == [running.job_id, last.job_id]
    jobs.stop(time.monotonic() + LONG_S)


def test_a_job_that_waits_to_be_gone_on_with_is_cancelled_by_its_own_work(
    reports: RecordedReports, new_request: NewRequest, entry_of: Callable[..., Entry]
) -> None:
    """An earlier agent had begun it: there is something to undo."""
    ran: list[bool] = []

    def run(job: Job) -> None:
        ran.append(job.stopped.is_set())
        job.raise_if_stopped()
        pipeline.run(job)

    pipeline = Pipeline()
    jobs = jobs_with(run, reports, limit=1)
    jobs.submit(entry_of(new_request()))
    assert pipeline.began.acquire(timeout=LONG_S)
    begun = dataclasses.replace(entry_of(new_request()), step="stream")
    jobs.submit(begun)
    assert jobs.cancel(begun.job_id, JobCancelled("not needed"))
    assert reports.outcomes == []
    pipeline.go.release()
    wait_for(lambda: len(reports.outcomes) == 2)
    assert (ran, reports.outcomes[1].state) == ([False, True], JobState.CANCELLED)
    jobs.stop(time.monotonic() + LONG_S)


def test_a_limit_for_a_job_that_waits_outlives_the_agent(
    reports: RecordedReports, new_request: NewRequest, journal: Journal
) -> None:
    request = new_request()
    journal.accept(request, {})
    journal.note(request.job_id, bandwidth_limit=7)
    entry = journal.find(request.job_id)
    assert entry is not None
    assert Job(entry, "h", reports).bandwidth_limit == 7


def test_each_job_of_a_deleted_instance_is_told_by_an_error_of_its_own(
    reports: RecordedReports, new_request: NewRequest, entry_of: Callable[..., Entry]
) -> None:
    """A raised error holds on to everything that the job had in its hands."""
    why: list[StillframeError] = []
    began = threading.Semaphore(0)

    def run(job: Job) -> None:
        began.release()
        assert job.stopped.wait(LONG_S)
        why.append(job.why_stopped)

    jobs = jobs_with(run, reports)
    entries = [entry_of(new_request()) for _ in range(2)]
    for entry in entries:
        jobs.submit(entry)
        assert began.acquire(timeout=LONG_S)
    for entry in entries:
        jobs.instance_deleted(entry.request.instance.uuid)
    wait_for(lambda: len(why) == 2)
    assert why[0] is not why[1]
    assert {str(one) for one in why} == {"the instance was deleted meanwhile"}


def test_a_limit_for_a_job_that_waits_is_kept_until_it_begins(
    reports: RecordedReports, new_request: NewRequest, entry_of: Callable[..., Entry]
) -> None:
    pipeline = Pipeline()
    rates: list[int] = []

    def run(job: Job) -> None:
        rates.append(job.throttle.rate_bytes_s)
        pipeline.run(job)

    jobs = jobs_with(run, reports, limit=1)
    running, waiting = entry_of(new_request()), entry_of(new_request())
    jobs.submit(running)
    jobs.submit(waiting)
    assert jobs.adjust(waiting.job_id, 7)
    pipeline.go.release(2)
    wait_for(lambda: len(reports.outcomes) == 2)
    assert rates == [0, 7 * MB]
    wait_for(lambda: not jobs.adjust(waiting.job_id, 8))
    jobs.stop(time.monotonic() + LONG_S)


def test_a_stop_interrupts_what_runs_and_leaves_what_waits_in_the_journal(
    journal: Journal,
    reports: RecordedReports,
    new_request: NewRequest,
    entry_of: Callable[..., Entry],
) -> None:
    pipeline = Pipeline()
    jobs = jobs_with(pipeline.run, reports, limit=1)
    running, waiting = entry_of(new_request()), entry_of(new_request())
    jobs.submit(running)
    assert pipeline.began.acquire(timeout=LONG_S)
    jobs.submit(waiting)
    jobs.stop(time.monotonic() + 5.5)
    assert [outcome.reason_code for outcome in reports.outcomes] == ["interrupted"]
    assert [entry.job_id for entry in journal.open_entries()] == [waiting.job_id]


def power_request(kind: JobKind = JobKind.STOP) -> PowerRequest:
    return PowerRequest(kind=kind, instance=InstanceRef(uuid=str(uuid.uuid4())))


def test_a_change_of_power_that_a_stop_interrupts_stays_for_the_next_agent(
    journal: Journal, reports: RecordedReports, entry_of: Callable[..., Entry]
) -> None:
    """Its guest may be going down: only the next agent can see what came of it."""
    pipeline = Pipeline()
    jobs = Jobs({JobKind.STOP: pipeline.run}, host="h", limit=1, reports=reports)
    entry = entry_of(power_request())
    jobs.submit(entry)
    assert pipeline.began.acquire(timeout=LONG_S)
    jobs.stop(time.monotonic() + 5.5)
    assert reports.outcomes == []
    assert [one.job_id for one in journal.open_entries()] == [entry.job_id]


def test_a_guest_that_has_no_room_is_stopped_all_the_same(
    reports: RecordedReports, entry_of: Callable[..., Entry]
) -> None:
    """Only what keeps what the guest overwrites ends for want of space."""
    pipeline = Pipeline()
    jobs = Jobs({JobKind.STOP: pipeline.run}, host="h", limit=1, reports=reports)
    entry = entry_of(power_request())
    jobs.submit(entry)
    assert pipeline.began.acquire(timeout=LONG_S)
    jobs.instance_out_of_space(entry.request.instance.uuid)
    pipeline.go.release()
    wait_for(lambda: len(reports.outcomes) == 1)
    assert reports.outcomes[0].state is JobState.DONE
    jobs.stop(time.monotonic() + LONG_S)


def test_one_that_somebody_cancels_ends(
    reports: RecordedReports, entry_of: Callable[..., Entry]
) -> None:
    pipeline = Pipeline()
    jobs = Jobs({JobKind.STOP: pipeline.run}, host="h", limit=1, reports=reports)
    entry = entry_of(power_request())
    jobs.submit(entry)
    assert pipeline.began.acquire(timeout=LONG_S)
    jobs.cancel(entry.job_id, JobCancelled("no more"))
    wait_for(lambda: [outcome.state for outcome in reports.outcomes] == [JobState.CANCELLED])
    jobs.stop(time.monotonic() + LONG_S)


def test_guests_that_do_not_obey_keep_no_other_waiting(
    reports: RecordedReports, entry_of: Callable[..., Entry]
) -> None:
    stuck, paused = Pipeline(), Pipeline()
    runners = {JobKind.STOP: stuck.run, JobKind.PAUSE: paused.run}
    jobs = Jobs(runners, host="h", limit=1, reports=reports)
    for _ in range(8):
        jobs.submit(entry_of(power_request()))
    jobs.submit(entry_of(power_request(JobKind.PAUSE)))
    assert paused.began.acquire(timeout=LONG_S)
    stuck.go.release(8)
    paused.go.release()
    wait_for(lambda: len(reports.outcomes) == 9)
    jobs.stop(time.monotonic() + LONG_S)


def test_a_deletion_ends_what_is_done_for_its_instance_and_is_not_ended_itself(
    reports: RecordedReports, new_request: NewRequest, entry_of: Callable[..., Entry]
) -> None:
    pipeline, deleted = Pipeline(), threading.Event()

    def delete(job: Job) -> None:
        # libvirt tells that the domain is gone.
        jobs.instance_deleted(job.instance.uuid)
        job.raise_if_stopped()
        deleted.set()

    runners = {JobKind.SNAPSHOT: pipeline.run, JobKind.DELETE: delete}
    jobs = Jobs(runners, host="h", limit=1, reports=reports)
    at_work = new_request()
    waiting = new_request(at_work.instance.uuid)
    jobs.submit(entry_of(at_work))
    assert pipeline.began.acquire(timeout=LONG_S)
    jobs.submit(entry_of(waiting))
    deletion = DeleteRequest(instance=InstanceRef(uuid=at_work.instance.uuid))
    jobs.submit(entry_of(deletion))
    assert deleted.wait(LONG_S)
    wait_for(lambda: len(reports.outcomes) == 3)
    states = {outcome.job_id: outcome.state for outcome in reports.outcomes}
    assert states == {
        at_work.job_id: JobState.CANCELLED,
        waiting.job_id: JobState.CANCELLED,
        deletion.job_id: JobState.DONE,
    }
    jobs.stop(time.monotonic() + LONG_S)
