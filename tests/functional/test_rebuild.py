# SPDX-License-Identifier: Apache-2.0
"""A rebuild brings data back, and whatever goes wrong leaves one whole disk that runs.

One guest, which boots from its own disk, and two images of it serve all of the module.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.functional.conftest import booted
from tests.functional.meddler import Meddler
from tests.functional.snapshots import (
    ADMIN,
    ask,
    leftovers,
    log_lines,
    post_action,
    wait_for,
)
from tests.functional.test_power import client
from tests.functional.test_snapshot import qemu_img
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.network import Network

Options = Callable[..., None]
#: A rebuild that waits for its proof as long as a test needs it to.
LONG = ("[rebuild]", "running_time = 60")
BRIEF = ("[rebuild]", "running_time = 0.5")
#: MB/s; something can be done while the image, of 70 MB, is fetched.
SLOW = ("bandwidth_limit = 15", *BRIEF)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A guest, and what there are snapshots of: all of it, and what changed since."""

    guest: Guest
    full: str
    increment: str
    #: The newest record before the increment was asked for.
    record: int


@pytest.fixture(scope="module")
def saved(cloud: Cloud) -> Iterator[Saved]:
    """The guest and its images."""
    with (
        Network(cloud.libvirtd, cloud.directory, "of-rebuilds").started() as network,
        booted(cloud, boot_from_disk=True, network=network.name, mac=network.mac(2)) as guest,
    ):
        cloud.reconfigure_agent("checkpoints = true")
        images = []
        for _ in range(2):
            guest.console.wait_for_beats(20)
            record = guest.console.beats[-1][2]
            asked = ask(cloud, guest, **{"stillframe:incremental": "true"})
            job = asked.ended()
            assert job["state"] == "done", job["reason"]
            images.append(asked.image_id)
        assert job["images"][0]["parent_image_id"] == images[0]
        cloud.reconfigure_agent()
        yield Saved(guest=guest, full=images[0], increment=images[1], record=record)
    for path in beside(guest):
        path.unlink()


@pytest.fixture(autouse=True)
def _brief(agent_options: Options) -> None:
    agent_options(*BRIEF)


def beside(guest: Guest) -> list[Path]:
    """Return what rebuilds have made beside a guest's disk."""
    return list(guest.disk.parent.glob(f"{guest.disk.name}.stillframe-*"))


def rooms(guest: Guest) -> list[Path]:
    """Return what no rebuild may leave: all but the base of the disk that it made."""
    return [path for path in beside(guest) if "-base-" not in path.name]


def rebuild(cloud: Cloud, guest: Guest, image_id: str) -> str:
    """Ask for a rebuild; return the id of its job."""
    answer = post_action(cloud, guest, {"rebuild": {"imageRef": image_id}})
    assert answer.status_code == requests.codes.accepted, answer.text
    assert answer.json()["server"]["status"] == "REBUILD"
    query = f"{cloud.api_url}/v1/jobs?instance_uuid={guest.uuid}&kind=rebuild"
    job_id: str = requests.get(query, headers=ADMIN, timeout=10).json()["jobs"][0]["id"]
    return job_id


def job_of(cloud: Cloud, job_id: str) -> dict[str, Any]:
    url = f"{cloud.api_url}/v1/jobs/{job_id}"
    job: dict[str, Any] = requests.get(url, headers=ADMIN, timeout=10).json()["job"]
    return job


def ended(cloud: Cloud, guest: Guest, job_id: str) -> dict[str, Any]:
    """Wait until a job has ended and the instance is free; return the job."""
    wait_for(lambda: job_of(cloud, job_id)["finished_at"], f"the end of job {job_id}")
    server = cloud.server(guest)
    assert server["OS-EXT-STS:task_state"] is None
    return job_of(cloud, job_id)


def journalled_step(cloud: Cloud, job_id: str) -> str | None:
    """Return the step that the agent has begun, before anybody is told of it."""
    journal = sqlite3.connect(cloud.directory / "state" / "journal.sqlite")
    try:
        found = journal.execute("SELECT step FROM entries WHERE job_id = ?", (job_id,)).fetchone()
    finally:
        journal.close()
    return found[0] if found else None


def kill_in(cloud: Cloud, job_id: str, step: str) -> None:
    """Kill the agent in that step of a job, and start another, whose proofs are brief."""
    wait_for(lambda: journalled_step(cloud, job_id) == step, f"step {step}")
    cloud.agent.kill()
    cloud.reconfigure_agent(*BRIEF)
    cloud.start_agent()


def assert_lives(cloud: Cloud, guest: Guest, *, after: int = 0) -> None:
    """The guest has booted and goes on writing records, newer ones than that."""
    guest.console.wait_for_beats(5)
    guest.console.wait_for_a_record()
    wait_for(lambda: guest.console.beats[-1][2] > after, "newer records", 60)
    assert guest.state() == "running"
    assert rooms(guest) == []
    assert leftovers(cloud) == []


def run_in(cloud: Cloud, guest: Guest, path: str, *arguments: str) -> None:
    """Have the guest agent run a program in the guest, to its good end."""

    def ask_agent(execute: str, **about: Any) -> Any:
        asked = json.dumps({"execute": execute, "arguments": about})
        return json.loads(cloud.libvirtd.virsh("qemu-agent-command", guest.name, asked))["return"]

    pid = ask_agent("guest-exec", path=path, arg=list(arguments))["pid"]
    ended = wait_for(
        lambda: (found := ask_agent("guest-exec-status", pid=pid))["exited"] and found, path
    )
    assert ended["exitcode"] == 0


def test_the_stock_client_brings_a_damaged_guests_data_back_from_an_increment(
    cloud: Cloud, saved: Saved, agent_options: Options
) -> None:
    guest = saved.guest
    guest.wait_for_agent()
    run_in(
        cloud, guest, "/bin/dd", "if=/dev/zero", "of=/dev/vda", "bs=1M", "count=64", "oflag=direct"
    )
    done = client(cloud, "rebuild", "--image", saved.increment, "--wait", guest.uuid)
    assert done.returncode == 0, done.stderr
    assert guest.uuid in done.stdout
    assert_lives(cloud, guest, after=saved.record)
    shown = cloud.server(guest)
    assert (shown["status"], shown["image"]["id"]) == ("ACTIVE", saved.increment)
    assert len(beside(guest)) == 1, "the new disk lies on a base, as the old one did"
    assert log_lines(cloud, "n-cpu.log", "Rebuilt of image", saved.increment)
    assert cloud.libvirtd.virsh("checkpoint-list", guest.name, "--name").split() == []
    agent_options("checkpoints = true", *BRIEF)
    job = ask(cloud, guest, **{"stillframe:incremental": "true"}).ended()
    assert "no earlier snapshot" in job["images"][0]["why_full"]


def test_a_wrong_hash_and_an_image_that_goes_leave_the_guest_alone(
    cloud: Cloud, saved: Saved, meddler: Meddler, tmp_path: Path
) -> None:
    guest, run = saved.guest, saved.guest.run_id()
    meddler.wrong_hashes = 1
    job = ended(cloud, guest, rebuild(cloud, guest, saved.full))
    assert (job["state"], job["reason_code"]) == ("error", "verify_failed")
    meddler.behave()
    gone = upload(cloud, b"\0" * 4096, owner="somebody", visibility="shared")
    refused = post_action(cloud, guest, {"rebuild": {"imageRef": gone}})
    assert refused.json()["badRequest"]["message"] == "Cannot find image for rebuild"
    members = f"{cloud.glance.endpoint}/v2/images/{gone}/members"
    requests.post(members, json={"member": "demo"}, timeout=10).raise_for_status()
    cloud.agent.signal(signal.SIGSTOP)
    try:
        job_id = rebuild(cloud, guest, gone)
        requests.delete(f"{cloud.glance.endpoint}/v2/images/{gone}", timeout=10)
    finally:
        cloud.agent.signal(signal.SIGCONT)
    job = ended(cloud, guest, job_id)
    assert (job["state"], job["reason_code"]) == ("error", "image_not_found")
    assert guest.run_id() == run
    assert_lives(cloud, guest)


def test_a_cancel_before_the_swap_leaves_the_guest_alone(
    cloud: Cloud, saved: Saved, agent_options: Options
) -> None:
    agent_options(*SLOW)
    guest, run = saved.guest, saved.guest.run_id()
    job_id = rebuild(cloud, guest, saved.full)
    wait_for(lambda: job_of(cloud, job_id)["bytes_done"] > 0, "bytes that are fetched")
    requests.delete(f"{cloud.api_url}/v1/jobs/{job_id}", headers=ADMIN, timeout=10)
    assert ended(cloud, guest, job_id)["state"] == "cancelled"
    assert guest.run_id() == run
    assert_lives(cloud, guest)


def upload(cloud: Cloud, data: bytes, **about: str) -> str:
    """Put a raw disk into Glance, as the project's; return the image's id."""
    record = {"name": "raw", "disk_format": "raw", "container_format": "bare", "owner": "demo"}
    record |= about
    url = f"{cloud.glance.endpoint}/v2/images"
    image_id: str = requests.post(url, json=record, timeout=10).json()["id"]
    headers = {"Content-Type": "application/octet-stream"}
    requests.put(f"{url}/{image_id}/file", data=data, headers=headers, timeout=10)
    return image_id


def test_a_disk_that_does_not_boot_gives_way_to_the_old_one(
    cloud: Cloud, saved: Saved, agent_options: Options
) -> None:
    guest = saved.guest
    agent_options("[rebuild]", "proof = agent", "proof_timeout = 5")
    before = guest.console.beats[-1][2]
    job = ended(cloud, guest, rebuild(cloud, guest, upload(cloud, b"\0" * (1 << 20))))
    assert (job["state"], job["reason_code"]) == ("error", "rebuild_unproven")
    assert "guest agent did not answer" in job["reason"]
    assert_lives(cloud, guest, after=before)
    assert cloud.server(guest)["image"]["id"] != job["options"]["image_id"]


def test_a_port_that_opens_proves_the_new_disk_and_one_that_does_not_brings_the_old_one_back(
    cloud: Cloud, saved: Saved, agent_options: Options
) -> None:
    guest = saved.guest
    # The guest's web server, at the address that its guest agent tells libvirt.
    agent_options("[rebuild]", "proof = port", "proof_port = 80")
    job = ended(cloud, guest, rebuild(cloud, guest, saved.full))
    assert job["state"] == "done", job["reason"]
    assert log_lines(cloud, "n-cpu.log", guest.uuid, "seen to run (port)")
    assert_lives(cloud, guest)

    before = guest.console.beats[-1][2]
    agent_options("[rebuild]", "proof = port", "proof_port = 81", "proof_timeout = 6")
    job = ended(cloud, guest, rebuild(cloud, guest, saved.increment))
    assert (job["state"], job["reason_code"]) == ("error", "rebuild_unproven")
    assert "its port was not open in 6 s" in job["reason"]
    assert_lives(cloud, guest, after=before)
    assert cloud.server(guest)["image"]["id"] == saved.full


def test_an_agent_that_dies_leaves_one_whole_disk_and_the_next_makes_it_run(
    cloud: Cloud, saved: Saved, agent_options: Options
) -> None:
    guest = saved.guest
    agent_options(*SLOW)
    job_id = rebuild(cloud, guest, saved.full)
    kill_in(cloud, job_id, "fetch")
    job = ended(cloud, guest, job_id)
    assert (job["state"], job["reason_code"]) == ("error", "interrupted")
    assert_lives(cloud, guest)

    before = guest.console.beats[-1][2]
    job_id = rebuild(cloud, guest, saved.full)
    kill_in(cloud, job_id, "stop")
    job = ended(cloud, guest, job_id)
    assert (job["state"], job["reason_code"]) == ("error", "interrupted")
    assert_lives(cloud, guest, after=before)

    agent_options(*LONG)
    job_id = rebuild(cloud, guest, saved.full)
    kill_in(cloud, job_id, "prove")
    job = ended(cloud, guest, job_id)
    assert job["state"] == "done", job["reason"]
    assert_lives(cloud, guest)
    assert len(beside(guest)) == 1, "the base of the disk before is gone with it"


def test_a_guest_that_is_off_stays_off_with_its_new_disk(
    cloud: Cloud, saved: Saved, request: pytest.FixtureRequest
) -> None:
    guest = saved.guest
    guest.shut_down()
    request.addfinalizer(lambda: guest.state() == "running" or guest.start())
    cloud.wait_for_instance(guest, "SHUTOFF")
    job = ended(cloud, guest, rebuild(cloud, guest, saved.increment))
    assert job["state"] == "done", job["reason"]
    assert guest.state() == "shut off"
    shown = cloud.server(guest)
    assert (shown["status"], shown["image"]["id"]) == ("SHUTOFF", saved.increment)
    guest.start()
    cloud.wait_for_instance(guest)
    assert_lives(cloud, guest, after=saved.record)


def test_a_raw_disk_without_a_base_becomes_one_with_the_images_bytes(
    cloud: Cloud, saved: Saved, new_guest: Callable[..., Guest]
) -> None:
    guest = new_guest(start=False, disk_format="raw")
    before = guest.disk.stat()
    job = ended(cloud, guest, rebuild(cloud, guest, saved.full))
    assert job["state"] == "done", job["reason"]
    image = cloud.glance.images / saved.full
    qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", str(guest.disk), str(image))
    after = guest.disk.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    assert beside(guest) == []
