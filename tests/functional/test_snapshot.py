# SPDX-License-Identifier: Apache-2.0
"""A snapshot is one true point in time of a guest that writes, and leaves nothing behind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.functional.snapshots import Asked, ask, ask_slowly, leftovers, log_lines, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.records import newest_record


def qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, timeout=120)


def assert_sound(asked: Asked, directory: Path) -> Path:
    """The image passes qemu-img's check; return it as a raw disk."""
    image = asked.download(directory)
    qemu_img("check", "-q", "-f", "qcow2", str(image))
    raw = directory / "disk.raw"
    qemu_img("convert", "-q", "-f", "qcow2", "-O", "raw", str(image), str(raw))
    return raw


@pytest.fixture
def paused_guest(cloud: Cloud, running_guest: Guest) -> Iterator[Guest]:
    """A guest that its user paused; it runs on afterwards."""
    cloud.libvirtd.virsh("suspend", running_guest.name)
    cloud.wait_for_instance(running_guest, "PAUSED")
    yield running_guest
    cloud.libvirtd.virsh("resume", running_guest.name)
    cloud.wait_for_instance(running_guest)


def assert_equal_to(disk: Path, asked: Asked, directory: Path) -> None:
    """The image (downloaded before) is, to its guest, the disk that stands still beside it."""
    image = directory / f"{asked.image_id}.qcow2"
    qemu_img("compare", "-q", "-U", "-f", "qcow2", "-F", "qcow2", str(image), str(disk))


def test_a_snapshot_of_a_writing_guest_is_one_gapless_point_in_time(
    cloud: Cloud, running_guest: Guest, tmp_path: Path
) -> None:
    running_guest.console.wait_for_beats()
    before = running_guest.console.beats[-1][2]
    asked = ask(cloud, running_guest)
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    running_guest.console.wait_for_beats()
    after = running_guest.console.beats[-1][2]

    newest = newest_record(assert_sound(asked, tmp_path))
    assert before <= newest <= after
    assert after > newest, "the guest went on writing"
    assert job["capture"]["instant_inside_pause"] is True
    assert 0 < job["capture"]["pause_ms"] < 5000
    assert running_guest.state() == "running"
    assert leftovers(cloud) == []


@pytest.mark.parametrize("method", ["backup", "overlay"])
def test_a_snapshot_boots_and_goes_on_where_it_was_taken(
    cloud: Cloud,
    running_guest: Guest,
    new_guest: Callable[..., Guest],
    agent_options: Callable[..., None],
    tmp_path: Path,
    method: str,
) -> None:
    agent_options(f"method = {method}")
    asked = ask(cloud, running_guest)
    assert asked.ended()["state"] == "done"
    image = asked.download(tmp_path)
    qemu_img("convert", "-q", "-f", "qcow2", "-O", "raw", str(image), str(tmp_path / "before.raw"))
    taken = newest_record(tmp_path / "before.raw")
    booted = new_guest(disk=image, boot_from_disk=True)
    assert any("boot" in words for words in booted.console.words)
    wait_for(
        lambda: booted.console.beats[-1][2] > taken, "a record after the snapshot's newest", 60
    )


def test_a_guest_that_is_shut_off_is_captured_offline(
    cloud: Cloud, new_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    guest = new_guest()
    guest.console.wait_for_beats(50)
    guest.shut_down()
    cloud.wait_for_instance(guest, "SHUTOFF")
    asked = ask(cloud, guest)
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    assert (job["capture"]["method"], job["capture"]["pause_ms"]) == ("offline", None)
    assert job["capture"]["consistency"] == "filesystem", "it had shut down in order"
    taken = newest_record(assert_sound(asked, tmp_path))
    assert taken > 0
    assert_equal_to(guest.disk, asked, tmp_path)
    assert leftovers(cloud) == []
    booted = new_guest(disk=asked.download(tmp_path), boot_from_disk=True)
    assert booted.console.beats[-1][2] > taken
    guest.start()


@pytest.mark.parametrize("method", ["backup", "overlay"])
def test_a_guest_that_its_user_paused_stays_paused_and_its_image_equals_its_disk(
    cloud: Cloud,
    paused_guest: Guest,
    agent_options: Callable[..., None],
    tmp_path: Path,
    method: str,
) -> None:
    agent_options(f"method = {method}")
    asked = ask(cloud, paused_guest)
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    assert (job["capture"]["method"], job["capture"]["pause_ms"]) == (method, None)
    assert paused_guest.state() == "paused"
    assert_sound(asked, tmp_path)
    assert_equal_to(paused_guest.disk, asked, tmp_path)


def test_a_raw_disk_is_captured_too(
    cloud: Cloud, new_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    asked = ask(cloud, new_guest(disk_format="raw"))
    assert asked.ended()["state"] == "done"
    assert newest_record(assert_sound(asked, tmp_path)) > 0


def test_the_image_says_what_it_is(cloud: Cloud, running_guest: Guest) -> None:
    asked = ask(cloud, running_guest, name="named", purpose="nightly")
    job = asked.ended()
    image = asked.image()
    assert image is not None
    expected = {
        "name": "named",
        "status": "active",
        "owner": "demo",
        "visibility": "private",
        "disk_format": "qcow2",
        "container_format": "bare",
        "image_type": "snapshot",
        "image_location": "snapshot",
        "image_state": "available",
        "instance_uuid": running_guest.uuid,
        "user_id": "demo",
        "owner_id": "demo",
        "purpose": "nightly",
        "stillframe_method": "backup",
        "stillframe_sha512": job["sha512"],
        "os_hash_value": job["sha512"],
        "size": job["size_bytes"],
    }
    assert {key: image.get(key) for key in expected} == expected
    assert float(image["stillframe_pause_ms"]) > 0


def test_task_state_and_progress_move_and_are_gone_afterwards(
    cloud: Cloud, running_guest: Guest
) -> None:
    asked = ask_slowly(cloud, running_guest)
    seen: dict[str | None, list[int]] = {}

    def ended() -> bool:
        server = cloud.server(running_guest)
        seen.setdefault(server["OS-EXT-STS:task_state"], []).append(server.get("progress", -1))
        return server["OS-EXT-STS:task_state"] is None

    wait_for(ended, "the end of the snapshot")
    assert "image_uploading" in seen
    assert any(0 < percent <= 100 for percent in seen["image_uploading"])
    assert "progress" not in cloud.server(running_guest)
    assert asked.ended()["state"] == "done"


@pytest.mark.parametrize("log", ["n-api.log", "n-cpu.log"])
def test_each_log_tells_the_story_under_one_request_id(
    cloud: Cloud, running_guest: Guest, log: str
) -> None:
    asked = ask(cloud, running_guest)
    asked.ended()
    (first,) = log_lines(cloud, "n-api.log", asked.image_id, "asks for a snapshot")
    request_id = next(word for word in first.replace("[", " ").split() if word.startswith("req-"))
    story = log_lines(cloud, log, request_id)
    told = {
        "n-api.log": ["asks for a snapshot", "Cast job", "accepted by", "active after"],
        "n-cpu.log": [
            "Accepted job",
            "begins: method backup, guest running",
            "Guest resumed after",
            "Uploading image",
            "Uploaded",
            "Verified",
            "is active after",
        ],
    }[log]
    for words in told:
        (line,) = [line for line in story if words in line]
        assert f"[instance: {running_guest.uuid}]" in line
