# SPDX-License-Identifier: Apache-2.0
"""New instances of snapshots run and hold their data; what fails, or is deleted, leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.functional.meddler import Meddler
from tests.functional.snapshots import ADMIN, DEMO, TIMEOUT_S, Asked, ask, post_action, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

BIN = Path(sys.executable).parent
_BEAT = re.compile(r"^hb \d+ \d+ (\d+) \d+\s*$", re.MULTILINE)
#: The machine's own code: mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt (ACPI: off).
_SWITCHES_ITSELF_OFF = b"\xba\x04\x06\xb8\x00\x20\xef\xf4".ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture(scope="module", autouse=True)
def _unbounded(cloud: Cloud) -> Iterator[None]:
    """Images come as fast as they do, and snapshots may be increments."""
    cloud.reconfigure_agent("bandwidth_limit = 0", "checkpoints = true")
    yield
    cloud.reconfigure_agent()


@pytest.fixture(scope="module")
def snapshots(cloud: Cloud, running_guest: Guest) -> tuple[Asked, Asked, int]:
    """A whole snapshot and an increment on it, and a record that both hold."""
    record = running_guest.console.beats[-1][2]
    whole = ask(cloud, running_guest, "whole", **{"stillframe:incremental": "true"})
    assert whole.ended()["state"] == "done"
    increment = ask(cloud, running_guest, "increment", **{"stillframe:incremental": "true"})
    assert increment.ended()["images"][0]["chain_length"] == 1
    return whole, increment, record


def create(cloud: Cloud, image_id: str, name: str = "new") -> str:
    """Ask for a server; return its id."""
    server = {"name": name, "imageRef": image_id, "flavorRef": "m1.tiny", "networks": "none"}
    url = f"{cloud.api_url}/v2.1/servers"
    answer = requests.post(url, json={"server": server}, headers=DEMO, timeout=30)
    assert answer.status_code == requests.codes.accepted, answer.text
    server_id: str = answer.json()["server"]["id"]
    return server_id


def show(cloud: Cloud, server_id: str) -> dict[str, Any]:
    found = cloud.get(f"/v2.1/servers/{server_id}")
    return found["server"] if found else {}


def delete(cloud: Cloud, server_id: str) -> None:
    """Delete a server and wait until it is gone."""
    url = f"{cloud.api_url}/v2.1/servers/{server_id}"
    answer = requests.delete(url, headers=DEMO, timeout=30)
    assert answer.status_code == requests.codes.no_content, answer.text
    wait_for(lambda: not show(cloud, server_id), "the end of the server")


def wait_for_status(cloud: Cloud, server_id: str, status: str) -> dict[str, Any]:
    wait_for(lambda: show(cloud, server_id)["status"] != "BUILD", "a server that is made")
    server = show(cloud, server_id)
    assert server["status"] == status, server.get("fault")
    return server


def place(cloud: Cloud, server_id: str) -> Path:
    return cloud.directory / "instances" / server_id


def newest_heard(cloud: Cloud, server_id: str) -> int:
    """Return the newest record that the server told of on its console; 0: none yet."""
    text = (place(cloud, server_id) / "console.log").read_text(errors="replace")
    return max(map(int, _BEAT.findall(text)), default=0)


def left_of(cloud: Cloud, *server_ids: str) -> list[str]:
    """Return what there is on the host of servers that there are not."""
    domains = cloud.libvirtd.virsh("list", "--all", "--uuid").split()
    # One that is being set up or removed is called `.ID`.
    made = (cloud.directory / "instances").iterdir()
    files = [path.name.removeprefix(".") for path in made]
    return [one for one in server_ids if one in [*domains, *files]]


def image_of(cloud: Cloud, image_id: str) -> dict[str, Any]:
    """Return an image as Glance shows it; empty if it has none of that id."""
    answer = requests.get(f"{cloud.glance.endpoint}/v2/images/{image_id}", timeout=10)
    found: dict[str, Any] = answer.json() if answer.ok else {}
    return found


def upload(cloud: Cloud, data: bytes, disk_format: str, **record: Any) -> str:
    """Put an image into Glance; return its id."""
    images = f"{cloud.glance.endpoint}/v2/images"
    wanted = {
        "name": "made",
        "disk_format": disk_format,
        "container_format": "bare",
        "owner": "demo",
        **record,
    }
    made = requests.post(images, json=wanted, timeout=30).json()
    octets = {"Content-Type": "application/octet-stream"}
    put = requests.put(f"{images}/{made['id']}/file", data=data, headers=octets, timeout=30)
    assert put.status_code == requests.codes.no_content, put.text
    image_id: str = made["id"]
    return image_id


def qcow2_of(boot_sector: bytes, directory: Path) -> bytes:
    """Return the image of a disk that begins so."""
    raw, image = directory / "disk.raw", directory / "disk.qcow2"
    raw.write_bytes(boot_sector.ljust(1 << 20, b"\0"))
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)]
    subprocess.run(command, check=True, timeout=30)
    return image.read_bytes()


def stock(cloud: Cloud, *arguments: str) -> str:
    """Run the stock client; return what it prints, without what it warns of."""
    done = subprocess.run(
        [str(BIN / "openstack"), "--os-cloud", "stillframe-demo", *arguments],
        env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_file)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def verify(cloud: Cloud, image_id: str) -> Any:
    """Try an image out as an operator does; return the process, whatever came of it."""
    try:
        return cloud.manage("image", "verify", image_id)
    except subprocess.CalledProcessError as refused:
        return refused


@pytest.fixture(scope="module")
def of_increment(cloud: Cloud, snapshots: tuple[Asked, Asked, int]) -> str:
    """A server made of the increment; it boots while other tests do what they do."""
    _, increment, _ = snapshots
    server_id = create(cloud, increment.image_id)
    wait_for_status(cloud, server_id, "ACTIVE")
    return server_id


def test_the_stock_client_makes_a_server_of_a_snapshot_and_deletes_it(
    cloud: Cloud, snapshots: tuple[Asked, Asked, int], of_increment: str
) -> None:
    whole, _, record = snapshots
    said = stock(
        cloud,
        *("server", "create", "--wait", "--image", whole.image_id, "--flavor", "m1.tiny"),
        *("--property", "why=a test", "-f", "value", "-c", "id", "back-again"),
    )
    (server_id,) = [line for line in said.split() if len(line) == len(str(uuid.uuid4()))]
    server = show(cloud, server_id)
    assert (server["status"], server["OS-EXT-STS:task_state"]) == ("ACTIVE", None)
    assert (server["name"], server["metadata"]) == ("back-again", {"why": "a test"})
    wait_for(lambda: newest_heard(cloud, server_id) >= record, "its data on its console")
    assert not (place(cloud, server_id) / "fetched").exists()
    stock(cloud, "server", "delete", "--wait", "back-again")
    assert left_of(cloud, server_id) == []
    assert whole.image() is not None


def test_an_increment_becomes_a_whole_server_that_is_as_others_are(
    cloud: Cloud, snapshots: tuple[Asked, Asked, int], of_increment: str
) -> None:
    _, _, record = snapshots
    wait_for(lambda: newest_heard(cloud, of_increment) >= record, "its data on its console")
    body = {"createImage": {"name": "of-the-new-one"}}
    image_id = post_action(cloud, of_increment, body).json()["image_id"]
    delete(cloud, of_increment)
    assert left_of(cloud, of_increment) == []
    # What was done for it ends with it.
    wait_for(lambda: not image_of(cloud, image_id), "the end of its snapshot")


def test_an_image_that_is_not_what_it_says_ends_in_error(cloud: Cloud, meddler: Meddler) -> None:
    image_id = upload(cloud, bytes(1 << 20), "raw")
    meddler.wrong_hashes = 1
    server_id = create(cloud, image_id)
    server = wait_for_status(cloud, server_id, "ERROR")
    assert image_id in server["fault"]["message"]
    assert str(cloud.directory) not in server["fault"]["message"]
    assert left_of(cloud, server_id) == []
    delete(cloud, server_id)


def test_an_agent_that_is_killed_leaves_nothing_of_what_it_was_making(
    cloud: Cloud, snapshots: tuple[Asked, Asked, int]
) -> None:
    whole, _, _ = snapshots
    cloud.reconfigure_agent("bandwidth_limit = 5")
    try:
        server_id = create(cloud, whole.image_id)
        wait_for(lambda: any(place(cloud, server_id).glob("fetched/*")), "bytes of the image")
        os.kill(cloud.agent.pid or 0, signal.SIGKILL)
        cloud.agent.stop()
    finally:
        cloud.configure()
        cloud.start_agent()
    cloud.reconfigure_agent("bandwidth_limit = 0", "checkpoints = true")
    server = wait_for_status(cloud, server_id, "ERROR")
    assert "ended during the create" in server["fault"]["message"]
    assert left_of(cloud, server_id) == []
    delete(cloud, server_id)


def test_an_image_that_boots_is_verified_and_one_that_does_not_is_told(
    cloud: Cloud, snapshots: tuple[Asked, Asked, int], tmp_path: Path
) -> None:
    good_id = snapshots[0].image_id
    bad_id = upload(cloud, qcow2_of(_SWITCHES_ITSELF_OFF, tmp_path), "qcow2")
    with ThreadPoolExecutor() as pool:
        good, bad = pool.map(lambda image_id: verify(cloud, image_id), (good_id, bad_id))
    assert "boots" in good.stdout, good.stderr
    assert "switched itself off" in bad.stderr
    jobs = requests.get(f"{cloud.api_url}/v1/jobs?kind=verify", headers=ADMIN, timeout=10).json()
    states = {job["image_id"]: job["state"] for job in jobs["jobs"]}
    assert (states[good_id], states[bad_id]) == ("done", "error")
    written = [image_of(cloud, image_id)["stillframe_verified"] for image_id in (good_id, bad_id)]
    assert written == ["yes", "no"]
    tried_in = [job["instance_uuid"] for job in jobs["jobs"]]
    assert left_of(cloud, *tried_in) == []
    assert not any(show(cloud, server_id) for server_id in tried_in)
