# SPDX-License-Identifier: Apache-2.0
"""Every capture method, on one disk and on two, is one gapless instant and leaves no trace."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compute_agent.disks.nbd import NbdClient
from tests.functional.conftest import booted
from tests.functional.snapshots import Asked, amid_upload, ask, leftovers, wait_for
from tests.functional.test_snapshot import assert_equal_to, assert_sound, qemu_img
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.records import newest_mirrored, newest_record

Options = Callable[..., None]
NewGuest = Callable[..., Guest]


def assert_untouched(cloud: Cloud, guest: Guest) -> None:
    """The guest is on its own disk, runs and writes, and nothing is left of us."""
    blocks = cloud.libvirtd.virsh("domblklist", guest.name).split()
    assert str(guest.disk) in blocks
    assert leftovers(cloud) == []
    assert [path for path in guest.disk.parent.iterdir() if ".stillframe-" in path.name] == []
    assert guest.state() == "running"
    before = guest.console.beats[-1][2]
    wait_for(lambda: guest.console.beats[-1][2] > before, "a record written afterwards", 30)


def assert_stamps_prove_the_instant(capture: dict[str, Any]) -> None:
    """QEMU's own times are kept on the job: stopped, its backup job made, running again."""
    if capture["pause_ms"] is None:
        assert capture["stamps"] is None
        return
    stamps = capture["stamps"]
    assert len(stamps["instants"]) == (1 if capture["method"] == "backup" else 0)
    times = [stamps["stopped_at"], *stamps["instants"], stamps["resumed_at"]]
    assert times == sorted(times)
    assert capture["pause_ms"] == pytest.approx((times[-1] - times[0]) * 1e3)


@pytest.fixture(scope="module")
def guest_of_two(cloud: Cloud) -> Iterator[Guest]:
    """A running guest that writes each record to its first disk, then to its second."""
    with booted(cloud, extra_disks=1, options="pulse.mirror=/dev/vdb") as guest:
        yield guest


def newest(beat: Guest) -> int:
    """Return the newest record that the guest has told us of."""
    beat.console.wait_for_beats(2)
    return beat.console.beats[-1][2]


@pytest.mark.parametrize("method", ["backup", "overlay"])
@pytest.mark.parametrize("pause", ["always", "never"])
def test_a_forced_method_is_one_gapless_instant(
    cloud: Cloud,
    running_guest: Guest,
    agent_options: Options,
    tmp_path: Path,
    method: str,
    pause: str,
) -> None:
    agent_options(f"method = {method}", f"pause = {pause}")
    before = newest(running_guest)
    asked = ask(cloud, running_guest)
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    after = newest(running_guest)
    assert before <= newest_record(assert_sound(asked, tmp_path)) <= after
    assert job["capture"]["method"] == method
    assert job["capture"]["instant_inside_pause"] is (True if pause == "always" else None)
    assert (job["capture"]["pause_ms"] is None) == (pause == "never")
    assert_stamps_prove_the_instant(job["capture"])
    assert_untouched(cloud, running_guest)


@pytest.mark.parametrize("method", ["backup", "overlay"])
def test_all_disks_are_captured_at_one_instant_an_image_each(
    cloud: Cloud, guest_of_two: Guest, agent_options: Options, tmp_path: Path, method: str
) -> None:
    agent_options(f"method = {method}")
    job, images = snapshot_of_all(cloud, guest_of_two)
    assert [image["disk"] for image in job["images"]] == ["vda", "vdb"]
    root, other = (assert_sound(image, directory(tmp_path, image.image_id)) for image in images)
    ahead = newest_record(root) - newest_mirrored(other, root)
    assert ahead in (0, 1), "a record is written to the second disk once it is on the first"
    assert newest_record(root) > 0
    assert_untouched(cloud, guest_of_two)


def test_the_images_of_one_instant_name_each_other(cloud: Cloud, guest_of_two: Guest) -> None:
    job, (root, other) = snapshot_of_all(cloud, guest_of_two)
    first, second = root.image(), other.image()
    assert first is not None
    assert second is not None
    assert (first["stillframe_disk"], second["stillframe_disk"]) == ("vda", "vdb")
    assert first["stillframe_disks"] == second["stillframe_disks"] == "vda,vdb"
    assert second["stillframe_root_image"] == root.image_id == job["image_id"]
    assert second["name"] == f"{first['name']} (vdb)"
    assert second["owner"] == first["owner"] == "demo"
    assert second["os_hash_value"] == job["images"][1]["sha512"]


def test_disks_of_a_guest_that_is_off_are_captured_too(
    cloud: Cloud, new_guest: NewGuest, tmp_path: Path
) -> None:
    guest = new_guest(extra_disks=1, start=False)
    second = guest.disk.with_name(f"{guest.name}-0.qcow2")
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", str(second)]
    subprocess.run(write, check=True, capture_output=True, timeout=30)
    job, images = snapshot_of_all(cloud, guest)
    assert job["capture"]["method"] == "offline"
    for image, disk in zip(images, (guest.disk, second), strict=True):
        assert_sound(image, tmp_path)
        assert_equal_to(disk, image, tmp_path)
    assert leftovers(cloud) == []


@pytest.mark.parametrize(
    ("options", "disk_format"),
    [
        (["snapshot_image_format = raw"], "raw"),
        (["snapshot_compression = true", "snapshot_compression_type = zlib"], "qcow2"),
        (["snapshot_compression = true", "snapshot_compression_type = zstd"], "qcow2"),
    ],
    ids=["raw", "zlib", "zstd"],
)
def test_images_are_raw_or_compressed_where_an_operator_wants_them_so(
    cloud: Cloud,
    new_guest: NewGuest,
    agent_options: Options,
    tmp_path: Path,
    options: list[str],
    disk_format: str,
) -> None:
    agent_options("[libvirt]", *options)
    guest = new_guest(start=False)
    asked = ask(cloud, guest)
    assert asked.ended()["state"] == "done"
    image, record = asked.download(tmp_path), asked.image()
    assert record is not None
    assert record["disk_format"] == disk_format
    formats = ("-f", disk_format, "-F", "qcow2")
    qemu_img("compare", "-q", "-U", *formats, str(image), str(guest.disk))
    if disk_format == "qcow2":
        assert compressed_clusters(image) > 0


def compressed_clusters(image: Path) -> int:
    """Return how many clusters of a sound qcow2 are compressed."""
    check = ["qemu-img", "check", "--output=json", "-f", "qcow2", str(image)]
    checked = subprocess.run(check, check=True, capture_output=True, timeout=120)
    return int(json.loads(checked.stdout)["compressed-clusters"])


def test_a_disk_that_cannot_be_captured_is_left_out_with_its_reason(
    cloud: Cloud, new_guest: NewGuest, tmp_path: Path
) -> None:
    guest = new_guest(start=False)
    shared = tmp_path / "shared.raw"
    qemu_img("create", "-q", "-f", "raw", str(shared), "16M")
    attach = ["attach-disk", guest.name, str(shared), "vdx", "--mode", "shareable", "--config"]
    cloud.libvirtd.virsh(*attach)
    job, _ = snapshot_of_all(cloud, guest)
    assert [image["disk"] for image in job["images"]] == ["vda"]
    assert job["capture"]["disks_left_out"] == {"vdx": "it is shared with other instances"}


def test_a_guest_with_an_iothread_survives_readers_that_are_killed(
    cloud: Cloud, new_guest: NewGuest, agent_options: Options
) -> None:
    """A backup job of such a disk would end the guest with its reader (QEMU 7.2)."""
    guest = new_guest(iothread=True, options="pulse.record_us=10000")
    dice = random.Random(7)  # moments, no secrets
    for _ in range(20):
        agent_options("bandwidth_limit = 60")
        asked = ask(cloud, guest)
        wait_for(
            lambda: (
                asked.job()["step"]  # noqa: B023 # called before the next round
                == "stream"
            ),
            "the upload",
        )
        time.sleep(dice.uniform(0, 0.6))  # the moment itself is what is tried
        cloud.agent.kill()
        assert guest.state() == "running"
        agent_options()
        cloud.start_agent()
        assert asked.ended()["finished_at"]
    assert ask(cloud, guest).ended()["capture"]["method"] == "overlay"
    assert_untouched(cloud, guest)


def test_a_guest_that_was_shut_off_on_its_overlay_is_put_back_on_its_disk(
    cloud: Cloud, new_guest: NewGuest, agent_options: Options
) -> None:
    agent_options("method = overlay")
    guest = new_guest()
    asked = amid_upload(cloud, guest)
    written = newest(guest)
    guest.shut_down()
    assert asked.ended()["state"] == "done", "the frozen disk does not need the guest"
    blocks = cloud.libvirtd.virsh("domblklist", guest.name, "--inactive").split()
    assert str(guest.disk) in blocks
    assert leftovers(cloud) == []
    guest.start()
    # Its records go on behind the newest on the disk, so what the overlay held is there.
    wait_for(lambda: guest.console.beats[-1][2] > written, "a record after the overlay's", 30)


def test_a_forced_method_that_cannot_serve_says_why(
    cloud: Cloud, running_guest: Guest, agent_options: Options
) -> None:
    agent_options("method = offline")
    asked = ask(cloud, running_guest)
    job = asked.ended()
    assert (job["state"], job["reason_code"]) == ("error", "capture_failed")
    assert "shut off" in job["reason"]
    assert asked.image() is None
    assert_untouched(cloud, running_guest)


def test_the_reader_of_a_backup_job_may_die_without_an_iothread(
    cloud: Cloud, running_guest: Guest
) -> None:
    asked = amid_upload(cloud, running_guest)
    (socket,) = (cloud.libvirtd.run / "nbd").glob("*/nbd")
    NbdClient(socket, "vda").abort()
    assert asked.ended()["state"] == "done"
    assert_untouched(cloud, running_guest)


def snapshot_of_all(cloud: Cloud, guest: Guest) -> tuple[dict[str, Any], list[Asked]]:
    """Take a snapshot of all disks; return its job and its images."""
    asked = ask(cloud, guest, **{"stillframe:disks": "all"})
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    return job, [Asked(cloud, guest, image["image_id"]) for image in job["images"]]


def directory(parent: Path, name: str) -> Path:
    """Return a directory of its own for what is downloaded."""
    path = parent / name
    path.mkdir()
    return path
