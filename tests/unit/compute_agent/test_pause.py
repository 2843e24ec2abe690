# SPDX-License-Identifier: Apache-2.0
"""What is frozen when, what is claimed of it, and that a thaw always follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from common.errors import CaptureFailed
from common.states import PowerState
from compute_agent.guest.errors import HypervisorError
from compute_agent.guest.stamps import PauseProof
from compute_agent.pause import Freeze, Limits, Pause, freeze_policy


class Guest:
    """Says what it is told to; notes what is done to it."""

    uuid = "guest"

    def __init__(self, *, frozen: int = 1, thawed: int = 1, agent: bool = True) -> None:
        self.done: list[str] = []
        self.frozen, self.thawed, self.agent = frozen, thawed, agent
        self.freeze_fails = self.thaw_fails = False
        #: What QEMU tells of the stop, in seconds after it began.
        self.instants_s: tuple[float, ...] = (0.01,)
        self.lasted_s = 60.0
        #: Called before anything is done to it.
        self.watch: Callable[[], None] = lambda: None

    def has_agent(self) -> bool:
        return self.agent

    def freeze(self, _timeout_s: float) -> int:
        self.watch()
        self.done.append("freeze")
        if self.freeze_fails:
            raise HypervisorError("no answer")
        return self.frozen

    def thaw(self, _timeout_s: float) -> int:
        self.watch()
        self.done.append("thaw")
        if self.thaw_fails:
            raise HypervisorError("no answer")
        return self.thawed

    def pause_since(self, since: float, _timeout_s: float) -> PauseProof:
        return PauseProof(
            stopped_at=since,
            instants=tuple(since + after_s for after_s in self.instants_s),
            resumed_at=since + self.lasted_s,
        )

    def power_state(self) -> PowerState:
        return PowerState.RUNNING

    def suspend(self) -> None:
        self.watch()
        self.done.append("suspend")

    def resume(self) -> None:
        self.watch()
        self.done.append("resume")


class Sentinel:
    """Notes what it watches over."""

    budget_s = 5.0

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.budgets: list[tuple[bool, float]] = []
        #: Whether a pause of the guest would be undone.
        self.resumes = False

    def arm(self, _uuid: str, *, resumes: bool, thaws: bool, budget_s: float) -> None:
        self.guest.done.append("arm")
        self.budgets.append((thaws, budget_s))
        self.resumes = resumes

    def resumed(self, _uuid: str) -> None:
        self.resumes = False

    def disarm(self, _uuid: str) -> None:
        self.guest.done.append("disarm")


def pause_of(guest: Any, freeze: Freeze, *, suspends: bool = True) -> Pause:
    sentinel: Any = Sentinel(guest)
    return Pause(
        guest, sentinel, suspends=suspends, freeze=freeze, limits=Limits(freeze_timeout_s=3)
    )


@pytest.mark.parametrize(
    ("wanted", "properties", "policy"),
    [
        ("auto", {}, Freeze.NEVER),
        ("auto", {"hw_qemu_guest_agent": "yes"}, Freeze.TRY),
        ("auto", {"hw_qemu_guest_agent": "no"}, Freeze.NEVER),
        ("auto", {"hw_qemu_guest_agent": "True", "os_require_quiesce": "yes"}, Freeze.REQUIRE),
        ("auto", {"os_require_quiesce": "true"}, Freeze.REQUIRE),
        ("never", {"os_require_quiesce": "yes"}, Freeze.NEVER),
        ("required", {}, Freeze.REQUIRE),
    ],
)
def test_the_policy_follows_the_request_then_the_image(
    wanted: str, properties: dict[str, str], policy: Freeze
) -> None:
    assert freeze_policy(wanted, properties) is policy


def test_the_sentinel_watches_from_before_the_freeze_until_after_the_thaw() -> None:
    guest = Guest()
    pause = pause_of(guest, Freeze.TRY)
    pause.begin()
    pause.end()
    assert guest.done == ["arm", "freeze", "arm", "suspend", "resume", "thaw", "disarm"]
    assert pause.froze
    assert pause.freeze_ms is not None


def test_a_guest_agent_that_was_slow_does_not_use_up_the_time_of_the_stop() -> None:
    """The time for freezing may be over when the vCPUs stop: it is watched over anew."""
    guest = Guest()
    sentinel: Any = Sentinel(guest)
    limits = Limits(freeze_timeout_s=3)
    anything: Any = guest
    Pause(anything, sentinel, suspends=True, freeze=Freeze.TRY, limits=limits).begin()
    assert sentinel.budgets == [(True, 8.0), (True, 5.0)]


def test_a_freeze_without_a_stop_is_watched_over_too() -> None:
    guest = Guest()
    pause = pause_of(guest, Freeze.TRY, suspends=False)
    pause.begin()
    pause.end()
    assert guest.done == ["arm", "freeze", "arm", "thaw", "disarm"]


def test_what_had_thawed_by_itself_is_not_claimed_to_have_stayed_frozen() -> None:
    pause = pause_of(Guest(frozen=2, thawed=1), Freeze.TRY)
    pause.begin()
    pause.end()
    assert not pause.froze


def test_a_freeze_that_was_not_answered_is_thawed_all_the_same() -> None:
    guest = Guest()
    guest.freeze_fails = True
    pause = pause_of(guest, Freeze.TRY)
    pause.begin()
    assert guest.done == ["arm", "freeze", "thaw", "arm", "suspend"]
    pause.end()
    assert not pause.froze


@pytest.mark.parametrize("guest", [Guest(agent=False), Guest(frozen=0)])
def test_a_freeze_that_is_required_and_does_not_come_fails(guest: Guest) -> None:
    pause = pause_of(guest, Freeze.REQUIRE)
    with pytest.raises(CaptureFailed, match="must be frozen"):
        pause.begin()
    pause.undo()
    assert "suspend" not in guest.done
    assert guest.done[-1] == "disarm"


def test_a_thaw_that_fails_leaves_the_sentinel_armed() -> None:
    guest = Guest()
    guest.thaw_fails = True
    pause = pause_of(guest, Freeze.TRY)
    pause.begin()
    pause.end()
    assert "disarm" not in guest.done
    guest.thaw_fails = False
    pause.undo()
    assert guest.done[-2:] == ["thaw", "disarm"]


@pytest.mark.parametrize("way_out", [Pause.end, Pause.undo])
def test_only_the_stop_itself_is_undone_by_the_sentinel(way_out: Callable[[Pause], None]) -> None:
    """Before it and after it a pause is somebody else's, though the file systems stay frozen."""
    guest: Any = Guest()
    sentinel: Any = Sentinel(guest)
    limits = Limits(freeze_timeout_s=3)
    pause = Pause(guest, sentinel, suspends=True, freeze=Freeze.TRY, limits=limits)
    seen: list[bool] = []
    guest.watch = lambda: seen.append(sentinel.resumes)
    pause.begin()
    guest.thaw_fails = True
    way_out(pause)
    assert guest.done == ["arm", "freeze", "arm", "suspend", "resume", "thaw"]
    assert seen == [False, True, True, False]


def test_undoing_a_stop_resumes_first() -> None:
    guest = Guest()
    pause = pause_of(guest, Freeze.TRY)
    pause.begin()
    pause.undo()
    assert guest.done[-3:] == ["resume", "thaw", "disarm"]


@pytest.mark.parametrize(
    ("backup_jobs", "instants_s", "lasted_s", "inside"),
    [
        (1, (0.01,), 60.0, True),
        (2, (0.01, 0.02), 60.0, True),
        (1, (-1.0,), 60.0, False),
        (2, (0.01, 61.0), 60.0, False),
        (1, (0.0,), 0.0, False),
        (2, (0.01,), 60.0, False),
        (0, (), 60.0, True),
    ],
    ids=[
        "inside",
        "two disks",
        "before it",
        "one after it",
        "resumed before the capture was over",
        "one not seen",
        "of a method without jobs",
    ],
)
def test_an_instant_is_only_called_inside_the_stop_if_qemu_s_stamps_say_so(
    backup_jobs: int, instants_s: tuple[float, ...], lasted_s: float, inside: bool
) -> None:
    guest = Guest()
    guest.instants_s, guest.lasted_s = instants_s, lasted_s
    pause = pause_of(guest, Freeze.NEVER)
    pause.begin()
    pause.end()
    stop = pause.proven(backup_jobs)
    assert stop is not None
    assert stop.instant_inside is inside
