# SPDX-License-Identifier: Apache-2.0
"""Whatever lies between the agent and Glance: an image is whole, or there is none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests

from tests.functional.meddler import Meddler
from tests.functional.snapshots import (
    ADMIN,
    Asked,
    ask,
    ask_slowly,
    leftovers,
    log_lines,
    wait_for,
)
from tests.functional.test_snapshot import assert_sound
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.records import newest_record

#: About what the functional guest's image has.
IMAGE_BYTES = 70 << 20
MIB = 1 << 20
#: Far more than a pause takes here, far less than anybody's timeout.
SILENT_MS = 4000


def assert_whole(asked: Asked, job: dict[str, object], directory: Path) -> None:
    """The image holds what was read, byte for byte, and is one point in time."""
    assert job["state"] == "done", job["reason"]
    image = asked.image()
    assert image is not None
    assert image["os_hash_value"] == job["sha512"] == image["stillframe_sha512"]
    assert newest_record(assert_sound(asked, directory)) > 0


def assert_never_silent(guest: Guest, since: float) -> None:
    """The guest went on all the time: its QEMU never waited for whoever reads its disk."""
    guest.console.wait_for_beats(2, timeout_s=10)
    assert guest.console.longest_gap_ms(since, time.monotonic()) < SILENT_MS


@pytest.mark.parametrize("percent", [1, 50, 99])
def test_an_upload_that_is_cut_begins_again_at_byte_0(
    cloud: Cloud, running_guest: Guest, meddler: Meddler, tmp_path: Path, percent: int
) -> None:
    meddler.cut_after_bytes, meddler.cuts = IMAGE_BYTES * percent // 100, 1
    before, began = meddler.uploads, time.monotonic()
    asked = ask(cloud, running_guest)
    assert_whole(asked, asked.ended(), tmp_path)
    assert_never_silent(running_guest, began)
    assert meddler.uploads - before == 2
    assert log_lines(cloud, "n-cpu.log", asked.image_id, "attempt 2 of")
    assert leftovers(cloud) == []


def test_an_upload_that_is_cut_each_time_ends_in_a_reason_and_no_image(
    cloud: Cloud, running_guest: Guest, meddler: Meddler
) -> None:
    meddler.cut_after_bytes, meddler.cuts = IMAGE_BYTES // 10, 100
    asked = ask(cloud, running_guest)
    job = asked.ended()
    assert (job["state"], job["reason_code"]) == ("error", "image_service_unavailable")
    assert asked.image() is None
    assert running_guest.state() == "running"
    assert leftovers(cloud) == []


def test_a_slow_glance_only_takes_longer(
    cloud: Cloud, running_guest: Guest, meddler: Meddler, tmp_path: Path
) -> None:
    meddler.delay_s = 0.005
    asked = ask(cloud, running_guest)
    job = asked.ended()
    assert_whole(asked, job, tmp_path)
    assert job["capture"]["pause_ms"] < 1000, "the pause knows nothing of Glance"


def test_a_wrong_hash_is_never_published_but_made_once_more(
    cloud: Cloud, running_guest: Guest, meddler: Meddler, tmp_path: Path
) -> None:
    meddler.wrong_hashes = 1
    asked = ask(cloud, running_guest, purpose="nightly")
    wait_for(lambda: cloud.server(running_guest)["OS-EXT-STS:task_state"] is None, "the end")
    (job,) = [one for one in jobs_of(cloud, running_guest) if one["state"] == "done"][:1]
    again = Asked(cloud, running_guest, job["image_id"])
    assert again.image_id != asked.image_id
    assert asked.image() is None, "the first one is gone"
    assert_whole(again, job, tmp_path)
    image = again.image()
    assert image is not None
    assert (image["purpose"], image["owner"], image["name"]) == ("nightly", "demo", "snap")
    assert leftovers(cloud) == []


def test_a_hash_that_is_wrong_twice_ends_in_an_error_and_no_image(
    cloud: Cloud, running_guest: Guest, meddler: Meddler
) -> None:
    meddler.wrong_hashes = 2
    asked = ask(cloud, running_guest)
    wait_for(lambda: cloud.server(running_guest)["OS-EXT-STS:task_state"] is None, "the end")
    job = jobs_of(cloud, running_guest)[0]
    assert (job["state"], job["reason_code"]) == ("error", "verify_failed")
    for image in job["images"]:
        assert Asked(cloud, running_guest, image["image_id"]).image() is None
    assert asked.image() is None
    assert leftovers(cloud) == []


def test_an_image_that_glance_loses_cancels_the_job(
    cloud: Cloud, running_guest: Guest, meddler: Meddler
) -> None:
    meddler.loses_images = True
    asked = ask(cloud, running_guest)
    job = asked.ended()
    assert (job["state"], job["reason_code"]) == ("cancelled", "cancelled")
    assert "deleted" in job["reason"]
    assert leftovers(cloud) == []


def reads_nothing_more(cloud: Cloud) -> bool:
    """Look for half a second whether the agent still reads."""
    io = Path(f"/proc/{cloud.agent.pid}/io")
    before = io.read_text().split()[1]
    time.sleep(0.5)
    return int(io.read_text().split()[1]) - int(before) < MIB


def test_a_guest_can_be_paused_and_its_job_ended_while_glance_hangs(
    cloud: Cloud, running_guest: Guest, meddler: Meddler
) -> None:
    """Whoever does so waits for QEMU to drain its disks, the one that is being read among them."""
    began = time.monotonic()
    asked = ask_slowly(cloud, running_guest)
    wait_for(lambda: cloud.server(running_guest)["progress"] > 0, "bytes on their way")
    meddler.flows.clear()
    wait_for(lambda: reads_nothing_more(cloud), "the reader to be as far ahead as it may be")
    for command in ("suspend", "resume", "domjobabort"):
        cloud.libvirtd.virsh(command, running_guest.name)
    assert_never_silent(running_guest, began)
    meddler.behave()
    assert asked.ended()["state"] == "error"
    assert asked.image() is None


def test_a_cancel_does_not_wait_for_a_glance_that_hangs(
    cloud: Cloud, running_guest: Guest, meddler: Meddler
) -> None:
    meddler.flows.clear()
    asked = ask(cloud, running_guest)
    wait_for(lambda: asked.job()["step"] == "stream", "the upload")
    job_id = asked.job()["id"]
    requests.delete(f"{cloud.api_url}/v1/jobs/{job_id}", headers=ADMIN, timeout=10)
    wait_for(lambda: leftovers(cloud) == [], "the end of the capture", 5)
    meddler.behave()
    assert asked.ended()["state"] == "cancelled"
    wait_for(lambda: asked.image() is None, "the image to go")


def jobs_of(cloud: Cloud, guest: Guest) -> list[dict[str, object]]:
    """Return the guest's jobs, newest first."""
    query = f"/v1/jobs?instance_uuid={guest.uuid}"
    found: list[dict[str, object]] = requests.get(
        cloud.api_url + query, headers=ADMIN, timeout=10
    ).json()["jobs"]
    return found
