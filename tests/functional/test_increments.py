# SPDX-License-Identifier: Apache-2.0
"""An increment holds what changed, flattened it is the disk, and doubt makes a full one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.functional.conftest import booted
from tests.functional.meddler import Meddler
from tests.functional.snapshots import Asked, ask, leftovers, wait_for
from tests.functional.test_snapshot import assert_sound
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.records import newest_record

NewGuest = Callable[..., Guest]


@pytest.fixture(scope="module")
def guest_of_all(cloud: Cloud) -> Iterator[Guest]:
    with booted(cloud) as guest:
        yield guest


@pytest.fixture
def guest(cloud: Cloud, guest_of_all: Guest, agent_options: Callable[..., None]) -> Iterator[Guest]:
    """A running guest whose checkpoints are kept; of those of other tests there is none."""
    agent_options("checkpoints = true")
    yield guest_of_all
    for name in checkpoints(cloud, guest_of_all):
        cloud.libvirtd.virsh("checkpoint-delete", guest_of_all.name, name)


def increment(cloud: Cloud, guest: Guest) -> tuple[Asked, dict[str, Any]]:
    """Ask for an increment; return it and what the job says of its image."""
    asked = ask(cloud, guest, **{"stillframe:incremental": "true"})
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    return asked, job["images"][0]


def checkpoints(cloud: Cloud, guest: Guest) -> list[str]:
    return cloud.libvirtd.virsh("checkpoint-list", guest.name, "--name").split()


def flattened(cloud: Cloud, asked: Asked) -> Asked:
    """Make a whole image of an increment, as an operator does."""
    said = cloud.manage("image", "flatten", asked.image_id).stdout.split()
    return Asked(cloud, asked.guest, said[1])


def test_an_increment_is_small_and_its_flattened_image_is_the_disk(
    cloud: Cloud, new_guest: NewGuest, agent_options: Callable[..., None], tmp_path: Path
) -> None:
    agent_options("checkpoints = true")
    guest = new_guest()
    full, first = increment(cloud, guest)
    assert first["parent_image_id"] is None
    assert "no earlier snapshot" in first["why_full"]
    for length in (1, 2):
        guest.console.wait_for_beats(20)
        before = guest.console.beats[-1][2]
        asked, image = increment(cloud, guest)
        assert image["chain_length"] == length
        assert image["size_bytes"] < first["size_bytes"] / 2
    record = asked.image()
    assert record is not None
    assert record["os_hidden"] is True
    assert record["stillframe_parent"] == image["parent_image_id"]
    whole = flattened(cloud, asked)
    image_of_whole = whole.image()
    assert image_of_whole is not None
    assert image_of_whole["os_hidden"] is False
    assert "stillframe_parent" not in image_of_whole
    assert image_of_whole["owner"] == "demo"
    assert newest_record(assert_sound(whole, tmp_path)) >= before
    booted = new_guest(disk=whole.download(tmp_path), boot_from_disk=True)
    wait_for(lambda: booted.console.beats[-1][2] > before, "records that go on", 60)
    assert len(checkpoints(cloud, guest)) == 1, "the older ones are merged into the newest"
    assert leftovers(cloud) == []
    assert full.image() is not None


def test_an_increment_of_several_disks_holds_each(
    cloud: Cloud, new_guest: NewGuest, agent_options: Callable[..., None], tmp_path: Path
) -> None:
    agent_options("checkpoints = true", "disks = all")
    guest = new_guest(extra_disks=1, options="pulse.mirror=/dev/vdb")
    increment(cloud, guest)
    guest.console.wait_for_beats(20)
    asked = ask(cloud, guest, **{"stillframe:incremental": "true"})
    job = asked.ended()
    assert [image["chain_length"] for image in job["images"]] == [1, 1]
    assert {image["disk"] for image in job["images"]} == {"vda", "vdb"}


def test_without_being_asked_a_snapshot_is_whole(cloud: Cloud, guest: Guest) -> None:
    increment(cloud, guest)
    job = ask(cloud, guest).ended()
    assert (job["images"][0]["parent_image_id"], job["images"][0]["why_full"]) == (None, None)


def test_a_parent_that_was_deleted_makes_a_full_one(cloud: Cloud, guest: Guest) -> None:
    parent, _ = increment(cloud, guest)
    requests.delete(f"{cloud.glance.endpoint}/v2/images/{parent.image_id}", timeout=10)
    _, image = increment(cloud, guest)
    assert image["parent_image_id"] is None
    assert "deleted" in image["why_full"]


def test_a_bitmap_that_was_lost_makes_a_full_one(
    cloud: Cloud, guest: Guest, tmp_path: Path
) -> None:
    """QEMU was killed: what it had not written down of the changes is lost."""
    increment(cloud, guest)
    pid = int((cloud.libvirtd.run / "qemu" / f"{guest.name}.pid").read_text())
    subprocess.run(["kill", "-9", str(pid)], check=True)
    wait_for(lambda: guest.state() == "shut off", "the guest to be off")
    guest.start()
    cloud.wait_for_instance(guest)
    asked, image = increment(cloud, guest)
    assert image["parent_image_id"] is None
    assert "lost" in image["why_full"]
    assert newest_record(assert_sound(asked, tmp_path)) > 0
    _, image = increment(cloud, guest)
    assert image["chain_length"] == 1, "it begins anew"


def test_an_increment_after_a_stop_and_start_holds_what_changed(
    cloud: Cloud, guest: Guest, tmp_path: Path
) -> None:
    increment(cloud, guest)
    guest.shut_down()
    cloud.wait_for_instance(guest, "SHUTOFF")
    guest.start()
    cloud.wait_for_instance(guest)
    asked, image = increment(cloud, guest)
    assert image["chain_length"] == 1
    assert newest_record(assert_sound(flattened(cloud, asked), tmp_path)) > 0


def bitmaps(guest: Guest) -> list[str]:
    """Return what the disk's file keeps of changes, when the guest is off."""
    command = ["qemu-img", "info", "--output", "json", str(guest.disk)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    kept = told["format-specific"]["data"].get("bitmaps", [])
    return [bitmap["name"] for bitmap in kept]


def define_anew(cloud: Cloud, guest: Guest, tmp_path: Path) -> None:
    """Stop and start it as Nova does it, which forgets what libvirt knows of its checkpoints."""
    guest.shut_down()
    cloud.wait_for_instance(guest, "SHUTOFF")
    definition = tmp_path / "domain.xml"
    definition.write_text(cloud.libvirtd.virsh("dumpxml", "--inactive", guest.name))
    cloud.libvirtd.virsh("undefine", guest.name, "--checkpoints-metadata")
    cloud.libvirtd.virsh("define", str(definition))
    guest.start()
    cloud.wait_for_instance(guest)


def test_an_increment_after_the_domain_was_defined_anew_holds_what_changed(
    cloud: Cloud, new_guest: NewGuest, agent_options: Callable[..., None], tmp_path: Path
) -> None:
    agent_options("checkpoints = true")
    guest = new_guest()
    increment(cloud, guest)
    increment(cloud, guest)
    define_anew(cloud, guest, tmp_path)
    asked, image = increment(cloud, guest)
    assert (image["chain_length"], image["why_full"]) == (2, None)
    assert newest_record(assert_sound(flattened(cloud, asked), tmp_path)) > 0
    define_anew(cloud, guest, tmp_path)
    assert ask(cloud, guest).ended()["state"] == "done"
    kept = checkpoints(cloud, guest)
    guest.shut_down()
    cloud.wait_for_instance(guest, "SHUTOFF")
    assert bitmaps(guest) == kept, "nothing stays of what libvirt had forgotten"


def test_a_disk_that_was_resized_makes_a_full_one(cloud: Cloud, guest: Guest) -> None:
    increment(cloud, guest)
    cloud.libvirtd.virsh("blockresize", guest.name, "vda", "1G")
    _, image = increment(cloud, guest)
    assert image["parent_image_id"] is None
    assert "sizes" in image["why_full"]


def test_a_job_that_fails_leaves_the_chain_as_it_was(cloud: Cloud, guest: Guest) -> None:
    first, _ = increment(cloud, guest)
    before = checkpoints(cloud, guest)
    asked = ask(
        cloud, guest, **{"stillframe:incremental": "true", "stillframe:bandwidth_limit": "1"}
    )
    wait_for(lambda: asked.job()["step"] == "stream", "the upload")
    cloud.agent.kill()
    cloud.libvirtd.virsh("domjobabort", guest.name)
    cloud.start_agent()
    assert asked.ended()["state"] == "error"
    assert checkpoints(cloud, guest) == before
    _, image = increment(cloud, guest)
    assert image["parent_image_id"] == first.image_id


def test_a_chain_does_not_grow_for_ever(
    cloud: Cloud, guest: Guest, agent_options: Callable[..., None]
) -> None:
    agent_options("checkpoints = true", "max_increments = 1")
    lengths = [increment(cloud, guest)[1]["chain_length"] for _ in range(4)]
    assert lengths == [0, 1, 0, 1]


def test_flattening_what_is_no_increment_says_so(cloud: Cloud, guest: Guest) -> None:
    full = ask(cloud, guest)
    assert full.ended()["state"] == "done"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        cloud.manage("image", "flatten", full.image_id)
    assert "no increment" in failed.value.stderr


def refused_to_flatten(cloud: Cloud, image_id: str, directory: Path) -> str:
    """Flatten in vain; return what is said, once no image and no temporary file is left of it."""
    command = [*cloud._command("stillframe-manage", logs=False), "image", "flatten", image_id]
    done = subprocess.run(
        command,
        env={**os.environ, "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert flattened_of(cloud, image_id) == []
    assert list(directory.glob("stillframe-*")) == []
    return done.stderr.splitlines()[-1]


def flattened_of(cloud: Cloud, image_id: str) -> list[Any]:
    url = f"{cloud.glance.endpoint}/v2/images?stillframe_flattened_from={image_id}"
    found: list[Any] = requests.get(url, timeout=10).json()["images"]
    return found


def set_property(cloud: Cloud, image_id: str, name: str, value: str) -> None:
    """Do what the image's project may."""
    answer = requests.patch(
        f"{cloud.glance.endpoint}/v2/images/{image_id}",
        json=[{"op": "replace", "path": f"/{name}", "value": value}],
        headers={"Content-Type": "application/openstack-images-v2.1-json-patch"},
        timeout=10,
    )
    assert answer.ok, answer.text


def test_flattening_follows_no_parent_into_another_project(
    cloud: Cloud, guest: Guest, tmp_path: Path
) -> None:
    increment(cloud, guest)
    asked, _ = increment(cloud, guest)
    theirs = str(uuid.uuid4())
    record = {"id": theirs, "owner": "theirs", "disk_format": "qcow2", "container_format": "bare"}
    images = f"{cloud.glance.endpoint}/v2/images"
    assert requests.post(images, json=record, timeout=10).ok
    set_property(cloud, asked.image_id, "stillframe_parent", theirs)
    said = refused_to_flatten(cloud, asked.image_id, tmp_path)
    assert theirs in said
    assert "another project" in said


def test_flattening_takes_glance_s_hash_for_true_and_no_property(
    cloud: Cloud, guest: Guest, tmp_path: Path
) -> None:
    parent, _ = increment(cloud, guest)
    asked, _ = increment(cloud, guest)
    stored = cloud.glance.images / parent.image_id
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    sha512 = hashlib.sha512(data).hexdigest()
    set_property(cloud, parent.image_id, "stillframe_sha512", sha512)
    assert "os_hash_value" in refused_to_flatten(cloud, asked.image_id, tmp_path)


def test_flattening_that_is_told_to_stop_leaves_nothing(
    cloud: Cloud, guest: Guest, meddler: Meddler, tmp_path: Path
) -> None:
    increment(cloud, guest)
    asked, _ = increment(cloud, guest)
    meddler.flows.clear()
    command = [*cloud._command("stillframe-manage", logs=False), "image", "flatten", asked.image_id]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}) as flattening:
        wait_for(lambda: flattened_of(cloud, asked.image_id), "the record of the whole")
        assert list(tmp_path.glob("stillframe-*")) != []
        flattening.send_signal(signal.SIGTERM)
        assert flattening.wait(60) == 1
    assert flattened_of(cloud, asked.image_id) == []
    assert list(tmp_path.glob("stillframe-*")) == []
