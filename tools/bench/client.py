# SPDX-License-Identifier: Apache-2.0
"""What a user of the cloud does: ask for a snapshot, wait, cancel; put bytes into Glance."""

from __future__ import annotations

import dataclasses
import http.client
import time
import uuid
from pathlib import Path
from typing import Any

import glanceclient
import requests

from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

_HEADERS = {"X-Auth-Token": "admin:admin", "OpenStack-API-Version": "compute 2.96"}
_CALL_TIMEOUT_S = 30.0
_JOB_TIMEOUT_S = 600.0
#: Seldom, since the answers take the CPU that the snapshot needs; its end is told by its job.
_LOOK_S = 0.25
_PIECE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot (or a rebuild) that was asked for, at `asked_at` (seconds since 1970)."""

    cloud: Cloud
    image_id: str
    job_id: str
    asked_at: float

    def ended(self) -> dict[str, Any]:
        """Wait until its job is done; return the job. Raises RuntimeError if it failed."""
        job = self.wait()
        if job["state"] != "done":
            raise RuntimeError(f"the {job['kind']} failed: {job['reason']}")
        return job

    def cancelled(self) -> None:
        """Cancel it and wait until everything is given back."""
        url = f"{self.cloud.api_url}/v1/jobs/{self.job_id}"
        requests.delete(url, headers=_HEADERS, timeout=_CALL_TIMEOUT_S).raise_for_status()
        self.wait()

    def wait(self) -> dict[str, Any]:
        """Wait until its job has ended, in whatever way; return the job."""
        deadline = time.monotonic() + _JOB_TIMEOUT_S
        while time.monotonic() < deadline:
            answer = self.cloud.get(f"/v1/jobs/{self.job_id}")
            if answer and answer["job"]["finished_at"]:
                job: dict[str, Any] = answer["job"]
                return job
            time.sleep(_LOOK_S)
        raise TimeoutError(f"job {self.job_id} does not end")


def ask(cloud: Cloud, guest: Guest, **metadata: str) -> Snapshot:
    """Ask for a snapshot of a guest, as `openstack server image create` does."""
    asked_at = time.time()
    answer = _act(cloud, guest, {"createImage": {"name": "bench", "metadata": metadata}})
    image_id = answer.json()["image_id"]
    jobs = cloud.get(f"/v1/jobs?instance_uuid={guest.uuid}")["jobs"]
    job_id = next(job["id"] for job in jobs if job["image_id"] == image_id)
    return Snapshot(cloud=cloud, image_id=image_id, job_id=job_id, asked_at=asked_at)


def rebuild(cloud: Cloud, guest: Guest, image_id: str) -> Snapshot:
    """Ask for a rebuild of a guest, as `openstack server rebuild` does."""
    asked_at = time.time()
    _act(cloud, guest, {"rebuild": {"imageRef": image_id}})
    newest = cloud.get(f"/v1/jobs?instance_uuid={guest.uuid}&kind=rebuild&limit=1")["jobs"][0]
    return Snapshot(cloud=cloud, image_id=image_id, job_id=newest["id"], asked_at=asked_at)


def _act(cloud: Cloud, guest: Guest, body: dict[str, Any]) -> requests.Response:
    url = f"{cloud.api_url}/v2.1/servers/{guest.uuid}/action"
    answer = requests.post(url, json=body, headers=_HEADERS, timeout=_CALL_TIMEOUT_S)
    answer.raise_for_status()
    return answer


def create_record(cloud: Cloud) -> str:
    """Create an image's record in Glance; return its id."""
    record = {"name": "bench", "disk_format": "qcow2", "container_format": "bare"}
    image_id = str(uuid.uuid4())
    url = f"{cloud.glance.endpoint}/v2/images"
    requests.post(url, json=record | {"id": image_id}, timeout=_CALL_TIMEOUT_S).raise_for_status()
    return image_id


def put(cloud: Cloud, image_id: str, file: Path, *, chunked: bool = False) -> None:
    """Put a file's bytes into an image: 1 MiB pieces, nothing hashed, the leanest that can be.

    `chunked` leaves out the length (Transfer-Encoding: chunked), as Nova's client does.
    """
    connection = http.client.HTTPConnection(
        "127.0.0.1", cloud.glance.port, timeout=_JOB_TIMEOUT_S, blocksize=_PIECE_BYTES
    )
    length = {"Transfer-Encoding": "chunked"}
    if not chunked:
        length = {"Content-Length": str(file.stat().st_size)}
    headers = {"Content-Type": "application/octet-stream"} | length
    url = f"/v2/images/{image_id}/file"
    with file.open("rb", buffering=0) as body:
        connection.request("PUT", url, body, headers, encode_chunked=chunked)
        answer = connection.getresponse()
        answer.read()
    connection.close()
    if answer.status != http.HTTPStatus.NO_CONTENT:
        raise RuntimeError(f"Glance answers {answer.status} to a PUT")


def upload_as_nova(cloud: Cloud, image_id: str, file: Path) -> None:
    """Put a file's bytes into an image by python-glanceclient, which Nova uploads with."""
    glance = glanceclient.Client("2", endpoint=cloud.glance.endpoint)
    with file.open("rb") as body:
        glance.images.upload(image_id, body)


def delete(cloud: Cloud, *image_ids: str) -> None:
    """Delete images; ones that are gone are fine."""
    for image_id in image_ids:
        requests.delete(f"{cloud.glance.endpoint}/v2/images/{image_id}", timeout=_CALL_TIMEOUT_S)
