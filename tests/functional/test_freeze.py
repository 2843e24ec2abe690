# SPDX-License-Identifier: Apache-2.0
"""File systems are frozen when the image asks for it, always thawed, and never claimed falsely."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.functional.conftest import booted
from tests.functional.snapshots import ask, ask_slowly, leftovers, log_lines, wait_for
from tests.functional.test_snapshot import assert_sound
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

NewGuest = Callable[..., Guest]

AGENT = {"hw_qemu_guest_agent": "yes"}
REQUIRED = {**AGENT, "os_require_quiesce": "yes"}

_SUPERBLOCK_AT, _INCOMPATIBLE_AT, _NEEDS_RECOVERY = 1024, 0x60, 0x4


@pytest.fixture(scope="module")
def guest(cloud: Cloud) -> Iterator[Guest]:
    """A guest whose image names the agent, and whose agent is there."""
    with booted(cloud, image_properties=AGENT) as guest:
        guest.wait_for_agent()
        yield guest


def needs_recovery(raw_disk: Path) -> bool:
    """Tell whether the guest's ext4 (its second partition) would replay its journal."""
    with raw_disk.open("rb") as disk:
        disk.seek(446 + 16 + 8)
        first_sector = struct.unpack("<I", disk.read(4))[0]
        disk.seek(first_sector * 512 + _SUPERBLOCK_AT + _INCOMPATIBLE_AT)
        return bool(struct.unpack("<I", disk.read(4))[0] & _NEEDS_RECOVERY)


def thawed(cloud: Cloud, guest: Guest) -> bool:
    """Ask the guest agent itself, from outside."""
    command = '{"execute": "guest-fsfreeze-status"}'
    return "thawed" in cloud.libvirtd.virsh("qemu-agent-command", guest.name, command)


def test_an_instance_whose_image_names_the_agent_is_frozen_and_thawed(
    cloud: Cloud, guest: Guest, tmp_path: Path
) -> None:
    asked = ask(cloud, guest)
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    assert job["capture"]["consistency"] == "filesystem"
    assert job["capture"]["freeze_ms"] > job["capture"]["pause_ms"] > 0
    assert not needs_recovery(assert_sound(asked, tmp_path))
    image = asked.image()
    assert image is not None
    assert image["stillframe_consistency"] == "filesystem"
    assert float(image["stillframe_freeze_ms"]) > 0
    assert thawed(cloud, guest)


def test_without_being_asked_nothing_is_frozen(
    cloud: Cloud, running_guest: Guest, tmp_path: Path
) -> None:
    asked = ask(cloud, running_guest)
    job = asked.ended()
    assert (job["capture"]["consistency"], job["capture"]["freeze_ms"]) == ("crash", None)
    assert needs_recovery(assert_sound(asked, tmp_path))


def test_a_request_may_ask_for_it(cloud: Cloud, running_guest: Guest) -> None:
    running_guest.wait_for_agent()
    job = ask(cloud, running_guest, **{"stillframe:freeze": "required"}).ended()
    assert job["state"] == "done", job["reason"]
    assert job["capture"]["consistency"] == "filesystem"


def test_an_agent_that_is_absent_leaves_a_crash_consistent_snapshot(
    cloud: Cloud, new_guest: NewGuest
) -> None:
    job = ask(cloud, new_guest(image_properties=AGENT, options="agent=none")).ended()
    assert job["state"] == "done", job["reason"]
    assert (job["capture"]["consistency"], job["capture"]["freeze_ms"]) == ("crash", None)


def test_a_required_freeze_that_cannot_be_fails_the_snapshot(
    cloud: Cloud, new_guest: NewGuest
) -> None:
    guest = new_guest(image_properties=REQUIRED, options="agent=none")
    asked = ask(cloud, guest)
    job = asked.ended()
    assert (job["state"], job["reason_code"]) == ("error", "capture_failed")
    assert "file systems must be frozen" in job["reason"]
    assert asked.image() is None
    assert guest.state() == "running"
    assert leftovers(cloud) == []


def test_an_agent_that_does_not_answer_holds_up_nothing_for_long(
    cloud: Cloud, new_guest: NewGuest, agent_options: Callable[..., None]
) -> None:
    agent_options("freeze_timeout = 1")
    guest = new_guest(image_properties=AGENT, options="agent=deaf")
    guest.wait_for_agent()
    job = ask(cloud, guest).ended()
    assert job["state"] == "done", job["reason"]
    assert job["capture"]["consistency"] == "crash"
    assert guest.state() == "running"


def test_an_agent_that_lies_is_not_believed(cloud: Cloud, new_guest: NewGuest) -> None:
    """It says that it froze; at the thaw nothing was frozen."""
    guest = new_guest(image_properties=AGENT, options="agent=lying")
    guest.wait_for_agent()
    assert ask(cloud, guest).ended()["capture"]["consistency"] == "crash"
    asked = ask(cloud, guest, **{"stillframe:freeze": "required"})
    assert asked.ended()["state"] == "error"
    assert len(log_lines(cloud, "n-cpu.log", guest.uuid, "had stayed frozen")) == 2, "it froze"
    assert asked.image() is None


def test_an_agent_killed_while_the_guest_is_frozen_leaves_it_thawed(
    cloud: Cloud, guest: Guest
) -> None:
    """The sentinel thaws what the compute agent froze."""
    for _ in range(3):
        asked = ask_slowly(cloud, guest)
        wait_for(lambda: asked.job()["step"] in ("pause", "stream"), "the pause")  # noqa: B023
        cloud.agent.kill()
        wait_for(lambda: guest.state() == "running", "the guest to run on", 10)
        wait_for(lambda: thawed(cloud, guest), "the thaw", 10)
        cloud.start_agent()
        asked.ended()
    assert leftovers(cloud) == []
