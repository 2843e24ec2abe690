# SPDX-License-Identifier: Apache-2.0
"""Nothing that a guest wrote to its overlay is lost, whoever interferes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.functional.snapshots import Asked, amid_upload, leftovers, log_lines, wait_for
from tests.functional.test_methods import assert_untouched, newest
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest


@pytest.fixture
def upload(cloud: Cloud, agent_options: Callable[..., None]) -> Callable[[Guest], Asked]:
    """Take a snapshot that is being read while its guest writes to an overlay."""
    agent_options("method = overlay", "bandwidth_limit = 20")
    return lambda guest: amid_upload(cloud, guest)


@pytest.fixture
def guest_on_a_device(
    cloud: Cloud, new_guest: Callable[..., Guest], tmp_path: Path
) -> Iterator[tuple[Guest, str]]:
    """A running guest whose disk is a block device, and the device."""
    guest = new_guest(disk_format="raw", start=False)
    losetup = ["losetup", "--find", "--show", "--direct-io=on", str(guest.disk)]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    old = cloud.libvirtd.virsh("dumpxml", guest.name, "--inactive")
    definition = tmp_path / "device.xml"
    disk = old.replace("<disk type='file'", "<disk type='block'")
    definition.write_text(disk.replace(f"file='{guest.disk}'", f"dev='{device}'"))
    cloud.libvirtd.virsh("define", str(definition))
    guest.start()
    cloud.wait_for_instance(guest)
    yield guest, device
    if guest.state() != "shut off":
        guest.destroy()
    subprocess.run(["losetup", "--detach", device], check=True)


def overlays(guest: Guest) -> list[Path]:
    return [path for path in guest.disk.parent.iterdir() if ".stillframe-" in path.name]


def test_an_overlay_stays_when_its_guest_is_rebooted_onto_the_old_disk(
    cloud: Cloud,
    upload: Callable[[Guest], Asked],
    new_guest: Callable[..., Guest],
    tmp_path: Path,
) -> None:
    """As Nova's hard reboot does, which writes the definition anew."""
    guest = new_guest()
    uploading = upload(guest)
    newest(guest)
    old = cloud.libvirtd.virsh("dumpxml", guest.name, "--inactive")
    (overlay,) = overlays(guest)
    guest.destroy()
    definition = tmp_path / "guest.xml"
    definition.write_text(old.replace(str(overlay), str(guest.disk)))
    cloud.libvirtd.virsh("define", str(definition))
    assert uploading.ended()["state"] == "done", "the frozen disk does not need the guest"
    assert overlays(guest) == [overlay]
    assert log_lines(cloud, "n-cpu.log", "ERROR", guest.uuid, f"{overlay} is kept")
    overlay.unlink()


def test_a_copy_that_somebody_makes_of_the_disk_is_not_taken_for_our_merge(
    cloud: Cloud, upload: Callable[[Guest], Asked], running_guest: Guest, tmp_path: Path
) -> None:
    """Ended as a merge, it would move the guest to the copy."""
    guest = running_guest
    uploading = upload(guest)
    copy = tmp_path / "copy.qcow2"
    arguments = ["blockcopy", guest.name, "vda", str(copy), "--format", "qcow2", "--transient-job"]
    cloud.libvirtd.virsh(*arguments)
    wait_for(lambda: uploading.job()["step"] == "release", "the end of the upload")
    wait_for(
        lambda: log_lines(cloud, "n-cpu.log", guest.uuid, "another operation works on vda"),
        "the agent to see the copy",
    )
    cloud.libvirtd.virsh("blockjob", guest.name, "vda", "--abort")
    assert uploading.ended()["state"] == "done"
    assert_untouched(cloud, guest)


def test_a_device_is_a_device_again_after_its_guest_was_shut_off_on_the_overlay(
    cloud: Cloud, guest_on_a_device: tuple[Guest, str], agent_options: Callable[..., None]
) -> None:
    agent_options("method = overlay")
    guest, device = guest_on_a_device
    asked = amid_upload(cloud, guest)
    written = newest(guest)
    guest.shut_down()
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    blocks = cloud.libvirtd.virsh("domblklist", guest.name, "--inactive", "--details").split()
    assert blocks[:4] == ["block", "disk", "vda", device]
    assert leftovers(cloud) == []
    guest.start()
    # Its records go on behind the newest on the disk, so what the overlay held is there.
    wait_for(lambda: guest.console.beats[-1][2] > written, "a record after the overlay's", 30)
