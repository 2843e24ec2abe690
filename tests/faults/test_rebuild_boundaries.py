# SPDX-License-Identifier: Apache-2.0
"""Killed at the begin and at the end of what a rebuild does to the guest: one whole disk, running.

The old disk until the guest was to start from the new one; from then on the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from compute_agent.rebuild import STEPS
from tests.faults import rebuilds, slices
from tests.faults.rebuilds import Asked, Rebuilt
from tests.faults.slices import NOT_YET, NOW, Journal
from tools.stack.cloud import Cloud

#: On a busy machine a slice may be longer than a step: then once more.
_TRIES = 4
_ORDER = (*(step.name for step in STEPS), "done")


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What is seen of a rebuild from outside while the agent stands still."""

    #: The disk's name is the new one's.
    is_swapped: bool
    guest_runs: bool
    #: What was made beside the disk is still there.
    has_room: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Instant:
    """Where the agent is killed: in a step, as soon as something is seen."""

    step: str
    #: The agent runs freely until this one, which is long enough not to be missed.
    after: str
    is_now: Callable[[Seen], bool]
    #: The disk is the image's in the end.
    is_new: bool


INSTANTS = {
    "swap begins": Instant("swap", "stop", lambda seen: not seen.is_swapped, False),
    "swap ends": Instant("swap", "stop", lambda seen: seen.is_swapped, False),
    "start begins": Instant("start", "stop", lambda seen: not seen.guest_runs, True),
    "start ends": Instant("start", "stop", lambda seen: seen.guest_runs, True),
    "release begins": Instant("release", "prove", lambda seen: seen.has_room, True),
    "release ends": Instant("release", "prove", lambda seen: not seen.has_room, True),
}
_QUICK = {"swap ends", "start ends"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=() if one in _QUICK else pytest.mark.long) for one in INSTANTS],
)
def test_a_kill_where(
    cloud: Cloud, rebuilt: Rebuilt, agent_options: Callable[..., None], name: str
) -> None:
    agent_options("bandwidth_limit = 0", "[rebuild]", "running_time = 0.5")
    instant = INSTANTS[name]
    for _ in range(_TRIES):
        asked = ask_and_stop_at(rebuilt, instant, name)
        cloud.agent.kill()
        cloud.start_agent()
        job = asked.ended()
        rebuilds.assert_whole(asked, name)
        # Else the next step's begin was on its way to the disk, where nobody could read it yet.
        if instant.is_new or job["state"] != "done":
            break
    expected = ("done", None) if instant.is_new else ("error", "interrupted")
    assert (job["state"], job["reason_code"]) == expected, name


def ask_and_stop_at(rebuilt: Rebuilt, instant: Instant, name: str) -> Asked:
    """Ask for a rebuild; return it with the agent standing still at the instant."""
    cloud = rebuilt.cloud
    for _ in range(_TRIES):
        inode = rebuilt.guest.disk.stat().st_ino
        asked = rebuilds.ask_for_rebuild(rebuilt)
        if _stops_at(asked, instant, inode):
            return asked
        slices.signal_agent(cloud, signal.SIGCONT)
        asked.ended()
        rebuilds.assert_whole(asked, f"{name}, missed")
    pytest.fail(f"{name}: that was over before it was seen, {_TRIES} times")


def _stops_at(asked: Asked, instant: Instant, inode: int) -> bool:
    """Let the agent run until the instant; False if it was missed. `inode` is the old disk's."""
    cloud = asked.rebuilt.cloud
    with slices.journal_of(cloud) as journal, _domain(asked.rebuilt) as domain:
        journal.wait_for(asked.job_id, instant.after, instant.step)

        def look() -> int:
            return _look(journal, asked, instant, _seen(asked, domain, inode))

        return slices.stop_where(look, cloud)


def _look(journal: Journal, asked: Asked, instant: Instant, seen: Seen) -> int:
    found = slices.place_of(journal.step(asked.job_id), instant.step, _ORDER)
    return NOT_YET if found == NOW and not instant.is_now(seen) else found


def _seen(asked: Asked, domain: libvirt.virDomain, inode: int) -> Seen:
    disk = asked.rebuilt.guest.disk
    return Seen(
        is_swapped=disk.stat().st_ino != inode,
        guest_runs=domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING,
        has_room=_room(disk, asked.job_id).exists(),
    )


def _room(disk: Path, job_id: str) -> Path:
    return disk.with_name(f"{disk.name}.stillframe-{job_id.replace('-', '')[:8]}")


@contextlib.contextmanager
def _domain(rebuilt: Rebuilt) -> Iterator[libvirt.virDomain]:
    with contextlib.closing(libvirt.openReadOnly(rebuilt.cloud.libvirtd.uri)) as connection:
        yield connection.lookupByUUIDString(rebuilt.guest.uuid)
