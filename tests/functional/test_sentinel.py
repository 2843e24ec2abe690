# SPDX-License-Identifier: Apache-2.0
"""A guest is never left paused: not by a dead agent, not by a late one, whenever it dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from compute_agent.sentinel import Sentinel
from tests.functional.snapshots import ask, leftovers, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.prepare import ROOT

BUDGET_S = 5.0
KILLS = int(os.environ.get("STILLFRAME_KILLS", "6"))
SEED = int(os.environ.get("STILLFRAME_SEED", str(random.randrange(10**6))))


@pytest.fixture
def new_sentinel(cloud: Cloud) -> Iterator[Callable[[float], Sentinel]]:
    sentinels: list[Sentinel] = []

    def make(budget_s: float) -> Sentinel:
        sentinel = Sentinel(cloud.libvirtd.uri, budget_s=budget_s)
        sentinels.append(sentinel)
        sentinel.start()
        return sentinel

    yield make
    for sentinel in sentinels:
        sentinel.stop(time.monotonic() + 10)


def runs(guest: Guest) -> bool:
    return guest.state() == "running"


def test_a_pause_that_outlasts_its_budget_is_ended(
    cloud: Cloud, running_guest: Guest, new_sentinel: Callable[[float], Sentinel]
) -> None:
    sentinel = new_sentinel(0.5)
    sentinel.arm(running_guest.uuid)
    cloud.libvirtd.virsh("suspend", running_guest.name)
    wait_for(lambda: runs(running_guest), "the guest to run on", BUDGET_S)


def test_a_disarmed_guest_is_left_alone(
    cloud: Cloud, running_guest: Guest, new_sentinel: Callable[[float], Sentinel]
) -> None:
    """Whoever pauses it after the capture means it."""
    sentinel = new_sentinel(0.3)
    sentinel.arm(running_guest.uuid)
    sentinel.disarm(running_guest.uuid)
    cloud.libvirtd.virsh("suspend", running_guest.name)
    sentinel.stop(time.monotonic() + 10)
    assert running_guest.state() == "paused"
    cloud.libvirtd.virsh("resume", running_guest.name)


ARM_PAUSE_AND_HANG = """
import subprocess, sys, time
from compute_agent.sentinel import Sentinel
sentinel = Sentinel(sys.argv[1], budget_s=60)
sentinel.arm(sys.argv[2])
subprocess.run(["virsh", "-q", "-c", sys.argv[1], "suspend", sys.argv[2]], check=True)
print("paused", flush=True)
time.sleep(60)
"""


def test_kill_9_of_the_whole_process_group_inside_a_pause_resumes_the_guest_at_once(
    cloud: Cloud, running_guest: Guest
) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", ARM_PAUSE_AND_HANG, cloud.libvirtd.uri, running_guest.uuid],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == b"paused\n"
    assert running_guest.state() == "paused"
    os.killpg(agent.pid, signal.SIGKILL)
    agent.communicate(timeout=10)
    wait_for(lambda: runs(running_guest), "the guest to run on", BUDGET_S)


def test_a_sentinel_that_was_killed_is_replaced_before_the_next_pause(
    cloud: Cloud, running_guest: Guest, new_sentinel: Callable[[float], Sentinel]
) -> None:
    sentinel = new_sentinel(0.5)
    assert sentinel._process is not None
    sentinel._process.kill()
    sentinel._process.wait()
    sentinel.arm(running_guest.uuid)
    cloud.libvirtd.virsh("suspend", running_guest.name)
    wait_for(lambda: runs(running_guest), "the guest to run on", BUDGET_S)


def test_an_agent_killed_at_any_instant_leaves_the_guest_running_and_nothing_behind(
    cloud: Cloud, running_guest: Guest
) -> None:
    """STILLFRAME_KILLS and STILLFRAME_SEED make it longer, or repeat a run."""
    instants = random.Random(SEED)
    for number in range(KILLS):
        after_s = instants.uniform(0.0, 0.6)
        where = f"kill {number + 1} of {KILLS}, {after_s:.3f} s after 202, seed {SEED}"
        asked = ask(cloud, running_guest)
        time.sleep(after_s)  # the instant is the point
        cloud.agent.kill()
        wait_for(lambda: runs(running_guest), f"the guest to run on ({where})", BUDGET_S)
        cloud.start_agent()
        job = asked.ended()
        image = asked.image()
        assert (job["state"] == "done") == (image is not None), where
        assert leftovers(cloud) == [], where
        running_guest.console.wait_for_beats()
