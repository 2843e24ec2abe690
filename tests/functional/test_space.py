# SPDX-License-Identifier: Apache-2.0
"""A snapshot fails for want of space before its guest does, and never takes the guest with it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.functional.snapshots import Asked, ask, leftovers, log_lines, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

MIB = 1 << 20
#: What the guest's partition for records holds: 8 MiB of 4 KiB each.
RING_RECORDS = 2048


@contextlib.contextmanager
def filled(directory: Path, leave_mib: int) -> Iterator[None]:
    """Fill a file system but for so many MiB."""
    ballast = directory / "ballast"
    try:
        wait_for(lambda: _fill(ballast, leave_mib), "a file system that is nearly full", 20)
        yield
    finally:
        ballast.unlink()


def _fill(ballast: Path, leave_mib: int) -> bool:
    """Try it; whoever else writes there meanwhile may have taken the room."""
    free_mib = shutil.disk_usage(ballast.parent).free // MIB
    command = ["fallocate", "-l", f"{free_mib - leave_mib}M", str(ballast)]
    return subprocess.run(command, check=False).returncode == 0


def assert_ended_for_want_of_space(cloud: Cloud, asked: Asked) -> None:
    """The job is in error with a reason, the guest runs and writes, nothing is left."""
    wait_for(lambda: asked.job()["finished_at"], "the end", 60)
    job = asked.job()
    assert (job["state"], job["reason_code"]) == ("error", "capture_failed")
    assert "ran out of space" in job["reason"]
    assert asked.image() is None
    wait_for(lambda: asked.guest.state() == "running", "the guest to run on", 5)
    before = asked.guest.console.beats[-1][2]
    wait_for(lambda: asked.guest.console.beats[-1][2] > before + 10, "the guest's records", 30)


@pytest.fixture
def scratch(cloud: Cloud) -> Path:
    return cloud.directory / "scratch"


def test_a_scratch_that_is_full_ends_the_snapshot_and_not_the_guest(
    cloud: Cloud, new_guest: Callable[..., Guest], agent_options: Callable[..., None], scratch: Path
) -> None:
    """QEMU stops a guest whose overwritten blocks find no room: end the job, then resume."""
    agent_options("bandwidth_limit = 1", "scratch_min_free = 0")
    guest = new_guest(options="pulse.record_us=0")
    # Only what held data before is kept back: the guest must have gone round its ring once.
    wait_for(lambda: guest.console.beats[-1][2] > RING_RECORDS, "a guest that overwrites")
    asked = ask(cloud, guest)
    wait_for(lambda: asked.job()["step"] == "stream", "the upload")
    with filled(scratch, leave_mib=2):
        assert_ended_for_want_of_space(cloud, asked)
    assert log_lines(cloud, "n-cpu.log", guest.uuid, "stood still for want of space")
    assert leftovers(cloud) == []


def test_a_scratch_that_is_nearly_full_ends_the_snapshot_before_the_guest_notices(
    cloud: Cloud, running_guest: Guest, agent_options: Callable[..., None], scratch: Path
) -> None:
    agent_options("bandwidth_limit = 1", "scratch_min_free = 500")
    asked = ask(cloud, running_guest)
    wait_for(lambda: asked.job()["step"] == "stream", "the upload")
    with filled(scratch, leave_mib=400):
        assert_ended_for_want_of_space(cloud, asked)
    assert not log_lines(cloud, "n-cpu.log", running_guest.uuid, "stood still for want of space")
    assert leftovers(cloud) == []


def test_too_little_space_from_the_start_is_told_at_once(
    cloud: Cloud, running_guest: Guest, scratch: Path
) -> None:
    with filled(scratch, leave_mib=10):
        asked = ask(cloud, running_guest)
        job = asked.ended()
    assert "too little free space" in job["reason"]
    assert asked.image() is None
    assert leftovers(cloud) == []
