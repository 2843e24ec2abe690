# SPDX-License-Identifier: Apache-2.0
"""Power is changed as asked, by the button first, and again after an agent that died."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from common.errors import DeadlinePassed, JobInterrupted
from common.messages import InstanceRef, PowerRequest
from common.states import JobKind, PowerState
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.power import Powers
from tests.unit.compute_agent.conftest import RecordedReports
from tests.unit.compute_agent.stage import tools_of

GUEST = "5b7a1ad4-0000-4000-8000-000000000000"
RUNNING, OFF, PAUSED = PowerState.RUNNING, PowerState.SHUTDOWN, PowerState.PAUSED


class Guest:
    """A guest that obeys its power button, or does not."""

    def __init__(self) -> None:
        self.state = RUNNING
        self.obeys = True
        self.done: list[str] = []
        self.starts = 0

    def guest(self, _uuid: str) -> Guest:
        return self

    def power_state(self) -> PowerState:
        return self.state

    def _become(self, what: str, state: PowerState) -> None:
        self.done.append(what)
        self.state = state

    def suspend(self) -> None:
        self._become("suspend", PAUSED)

    def resume(self) -> None:
        self._become("resume", RUNNING)

    def start(self) -> None:
        self._become("start", RUNNING)
        self.starts += 1

    def is_active(self) -> bool:
        return self.state is not OFF

    def run_id(self) -> str:
        return str(self.starts) if self.is_active() else ""

    def cut_power(self) -> None:
        self._become("cut", OFF)

    def shut_down(self, _timeout_s: float, _stopped: threading.Event) -> bool:
        self._become("button", OFF if self.obeys else self.state)
        return self.obeys


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def powers(guest: Guest, journal: Journal, tmp_path: Path) -> Powers:
    return Powers(tools_of(guest, journal, tmp_path), shutdown_timeout_s=1)


def job_of(journal: Journal, kind: JobKind, **asked: Any) -> Job:
    request = PowerRequest(kind=kind, instance=InstanceRef(uuid=GUEST), **asked)
    journal.accept(request, {})
    entry = journal.find(request.job_id)
    assert entry is not None
    assert entry.request == request
    return Job(entry, "h", RecordedReports(journal))


@pytest.mark.parametrize(
    ("kind", "asked", "before", "done", "after"),
    [
        (JobKind.PAUSE, {}, RUNNING, ["suspend"], PAUSED),
        (JobKind.PAUSE, {}, PAUSED, [], PAUSED),
        (JobKind.UNPAUSE, {}, PAUSED, ["resume"], RUNNING),
        (JobKind.START, {}, OFF, ["start"], RUNNING),
        (JobKind.STOP, {}, RUNNING, ["button"], OFF),
        (JobKind.STOP, {}, PAUSED, ["cut"], OFF),
        (JobKind.STOP, {"clean_shutdown": False}, RUNNING, ["cut"], OFF),
        (JobKind.REBOOT, {}, RUNNING, ["button", "start"], RUNNING),
        (JobKind.REBOOT, {"reboot_type": "HARD"}, RUNNING, ["cut", "start"], RUNNING),
    ],
)
def test_each_kind_does_what_it_says(
    powers: Powers,
    guest: Guest,
    journal: Journal,
    kind: JobKind,
    asked: dict[str, Any],
    before: PowerState,
    done: list[str],
    after: PowerState,
) -> None:
    guest.state = before
    job = job_of(journal, kind, **asked)
    powers.run(job)
    assert (guest.done, guest.state) == (done, after)
    outcome = job.finish(None)
    assert (outcome.kind, outcome.power_state, outcome.image_id) == (kind, after, "")


def test_a_guest_that_does_not_obey_its_button_loses_its_power(
    powers: Powers, guest: Guest, journal: Journal
) -> None:
    guest.obeys = False
    powers.run(job_of(journal, JobKind.STOP))
    assert (guest.done, guest.state) == (["button", "cut"], OFF)


def test_an_agent_that_stops_cuts_no_power_for_it(
    powers: Powers, guest: Guest, journal: Journal
) -> None:
    guest.obeys = False
    job = job_of(journal, JobKind.STOP)
    job.stop(JobInterrupted("the agent stops"))
    with pytest.raises(JobInterrupted):
        powers.run(job)
    assert (guest.done, job.result.power_state) == (["button"], RUNNING)


def next_of(journal: Journal, job: Job) -> Job:
    """Return the job as a new agent finds it whose predecessor died in the middle of it."""
    entry = journal.find(job.entry.job_id)
    assert entry is not None
    return Job(entry, "h", RecordedReports(journal))


def killed_in(powers: Powers, journal: Journal, kind: JobKind, **asked: Any) -> Job:
    """Return a job whose agent died when it had done what it did of it."""
    job = job_of(journal, kind, **asked)
    powers.run(job)
    return next_of(journal, job)


@pytest.mark.parametrize(
    ("kind", "state", "after"),
    [
        (JobKind.STOP, RUNNING, OFF),
        (JobKind.START, OFF, RUNNING),
        (JobKind.PAUSE, RUNNING, PAUSED),
        (JobKind.UNPAUSE, PAUSED, RUNNING),
    ],
)
def test_what_an_agents_end_interrupted_is_done_by_the_next(
    powers: Powers,
    guest: Guest,
    journal: Journal,
    kind: JobKind,
    state: PowerState,
    after: PowerState,
) -> None:
    job = killed_in(powers, journal, kind)
    guest.state = state
    powers.run(job)
    assert (guest.state, job.result.power_state) == (after, after)


def test_but_not_after_its_deadline(powers: Powers, guest: Guest, journal: Journal) -> None:
    job = killed_in(powers, journal, JobKind.STOP, deadline=1.0)
    guest.state = RUNNING
    guest.done.clear()
    with pytest.raises(DeadlinePassed):
        powers.run(job)
    assert guest.done == []


def test_what_has_come_about_is_done_however_late_the_next_agent_sees_it(
    powers: Powers, guest: Guest, journal: Journal
) -> None:
    job = killed_in(powers, journal, JobKind.STOP, deadline=1.0)
    guest.done.clear()
    powers.run(job)
    assert (guest.done, job.result.power_state) == ([], OFF)


def interrupted_reboot(powers: Powers, guest: Guest, journal: Journal, **asked: Any) -> Job:
    """Return a soft reboot whose agent died while the guest was still shutting down."""
    guest.obeys = False
    job = job_of(journal, JobKind.REBOOT, **asked)
    job.stop(JobInterrupted("killed"))
    with pytest.raises(JobInterrupted):
        powers.run(job)
    guest.obeys = True
    guest.done.clear()
    return next_of(journal, job)


@pytest.mark.parametrize("deadline", [None, 1.0])
def test_a_guest_that_a_reboot_left_off_is_switched_on_however_late(
    powers: Powers, guest: Guest, journal: Journal, deadline: float | None
) -> None:
    job = interrupted_reboot(powers, guest, journal, deadline=deadline)
    guest.state = OFF
    powers.run(job)
    assert (guest.done, guest.state) == (["cut", "start"], RUNNING)


def test_a_reboot_that_was_not_over_is_done_and_one_that_was_is_not_done_twice(
    powers: Powers, guest: Guest, journal: Journal
) -> None:
    job = interrupted_reboot(powers, guest, journal)
    powers.run(job)
    assert guest.done == ["button", "start"]
    guest.done.clear()
    powers.run(next_of(journal, job))
    assert guest.done == []


def test_a_reboot_that_was_not_over_is_not_done_after_its_deadline(
    powers: Powers, guest: Guest, journal: Journal
) -> None:
    with pytest.raises(DeadlinePassed):
        powers.run(interrupted_reboot(powers, guest, journal, deadline=1.0))
    assert guest.done == []


def test_a_journal_of_an_earlier_release_is_read(tmp_path: Path, journal: Journal) -> None:
    """It knew snapshots alone, and its table no kinds."""
    journal._db.execute("ALTER TABLE entries DROP COLUMN kind")
    journal._db.execute(
        "INSERT INTO entries (job_id, request, context, accepted_at) VALUES (?, ?, '{}', 1)",
        (GUEST, f'{{"instance": {{"uuid": "{GUEST}"}}, "image_id": "{GUEST}"}}'),
    )
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    try:
        assert [entry.request.kind for entry in again.open_entries()] == [JobKind.SNAPSHOT]
    finally:
        again.close()
