# SPDX-License-Identifier: Apache-2.0
"""What the functional tests do with a cloud: ask for snapshots, wait, and look at images."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

TIMEOUT_S = 120.0
DEMO = {"X-Auth-Token": "demo:demo", "OpenStack-API-Version": "compute 2.96"}
ADMIN = {**DEMO, "X-Auth-Token": "admin:admin"}
#: MB/s; the test guest's image has about 70.
SLOWLY = {"stillframe:bandwidth_limit": "25"}
#: By image: a guest that many tests use has many jobs, too many to list them at each look.
_job_ids: dict[str, str] = {}


def wait_for(
    holds: Callable[[], Any],
    what: str,
    timeout_s: float = TIMEOUT_S,
    seen: Callable[[], object] = str,
) -> Any:
    """Wait until something outside of this process holds; return what it returned.

    What is `seen` when it did not come is told.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} did not come in {timeout_s} s {seen()}"
        time.sleep(0.05)
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A snapshot that was asked for."""

    cloud: Cloud
    guest: Guest
    image_id: str

    def job(self) -> dict[str, Any]:
        """Return its job as `/v1/jobs` shows it."""
        url, known = f"{self.cloud.api_url}/v1/jobs", _job_ids.get(self.image_id)
        found: dict[str, Any]
        if known is None:
            query = {"instance_uuid": self.guest.uuid}
            jobs = requests.get(url, query, headers=ADMIN, timeout=10).json()["jobs"]
            found = next(job for job in jobs if job["image_id"] == self.image_id)
            _job_ids[self.image_id] = found["id"]
        else:
            found = requests.get(f"{url}/{known}", headers=ADMIN, timeout=10).json()["job"]
        return found

    def ended(self) -> dict[str, Any]:
        """Wait until its job has ended and the instance is free; return the job."""
        wait_for(lambda: self.job()["finished_at"], f"the end of image {self.image_id}")
        assert self.cloud.server(self.guest)["OS-EXT-STS:task_state"] is None
        return self.job()

    def image(self) -> dict[str, Any] | None:
        """Return its image as Glance shows it, or None if Glance has none of that id."""
        url = f"{self.cloud.glance.endpoint}/v2/images/{self.image_id}"
        answer = requests.get(url, timeout=10)
        return None if answer.status_code == requests.codes.not_found else answer.json()

    def download(self, directory: Path) -> Path:
        """Fetch the image's data from Glance; return the file."""
        path = directory / f"{self.image_id}.qcow2"
        url = f"{self.cloud.glance.endpoint}/v2/images/{self.image_id}/file"
        with requests.get(url, timeout=60, stream=True) as answer, path.open("wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
        return path


def post_action(cloud: Cloud, guest: Guest | str, body: Any, **headers: str) -> requests.Response:
    """Post an action to a server."""
    uuid = guest if isinstance(guest, str) else guest.uuid
    url = f"{cloud.api_url}/v2.1/servers/{uuid}/action"
    return requests.post(url, json=body, headers=DEMO | headers, timeout=30)


def ask(cloud: Cloud, guest: Guest, name: str = "snap", **metadata: str) -> Asked:
    """Ask for a snapshot of a guest."""
    answer = post_action(cloud, guest, {"createImage": {"name": name, "metadata": metadata}})
    assert answer.status_code == requests.codes.accepted, answer.text
    return Asked(cloud, guest, answer.json()["image_id"])


def ask_slowly(cloud: Cloud, guest: Guest, name: str = "snap", **metadata: str) -> Asked:
    """Ask for one whose upload takes some seconds: something can be done in its middle."""
    return ask(cloud, guest, name, **(SLOWLY | metadata))


def amid_upload(cloud: Cloud, guest: Guest, name: str = "snap", **metadata: str) -> Asked:
    """Ask for one that is slow, and wait until its upload has begun."""
    asked = ask_slowly(cloud, guest, name, **metadata)
    wait_for(lambda: asked.job()["step"] == "stream", "the upload")
    return asked


def openstack(
    cloud: Cloud, *arguments: str, bin_directory: Path, who: str = "stillframe-demo"
) -> Any:
    """Run the stock client, unmodified, and return what it prints as JSON."""
    command = [str(bin_directory / "openstack"), "--os-cloud", who]
    done = subprocess.run(
        [*command, *arguments, "-f", "json"],
        env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_file)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def log_lines(cloud: Cloud, name: str, *words: str) -> list[str]:
    """Return the lines of a log that hold every one of `words`."""
    text = (cloud.log_directory / name).read_text()
    return [line for line in text.splitlines() if all(word in line for word in words)]


def leftovers(cloud: Cloud) -> list[str]:
    """Return what a snapshot should not have left, looked at from outside."""
    found = [str(path) for path in (cloud.directory / "scratch").iterdir()]
    found += [str(path) for path in (cloud.libvirtd.run / "nbd").iterdir()]
    for name in cloud.libvirtd.virsh("list", "--name").split():
        if "domainbackup" in cloud.libvirtd.virsh("backup-dumpxml", name, check=False):
            found.append(f"a backup job on {name}")
    return found
