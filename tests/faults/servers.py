# SPDX-License-Identifier: Apache-2.0
"""A new server that is asked for, and what must hold after a fault: it is there, or nothing is."""

from __future__ import annotations

import dataclasses
from typing import Any

import requests

from tests.faults.faults import Scene
from tests.functional.snapshots import ADMIN, wait_for
from tests.functional.test_spawn import create, delete, left_of, place, show
from tools.stack.cloud import Cloud

_PUT_RIGHT_S = 60.0
#: What lies in the directory of a server that runs.
_WHOLE = ["console.log", "disk"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewServer:
    """One server; the job that makes it."""

    scene: Scene
    server_id: str
    job_id: str

    def job(self) -> dict[str, Any]:
        """Return its job as `/v1/jobs` shows it."""
        url = f"{self.scene.cloud.api_url}/v1/jobs/{self.job_id}"
        job: dict[str, Any] = requests.get(url, headers=ADMIN, timeout=10).json()["job"]
        return job

    def assert_whole(self, where: str) -> None:
        """The server runs, or says why not and nothing is left of it; then it is deleted.

        A job that was given up while its agent could not speak may be done after all.
        """
        cloud = self.scene.cloud
        wait_for(self._is_as_it_says, f"what its job says ({where})", _PUT_RIGHT_S, self._seen)
        server = show(cloud, self.server_id)
        assert server["OS-EXT-STS:task_state"] is None, where
        assert self.job()["state"] == "done" or server["fault"]["message"], where
        delete(cloud, self.server_id)
        assert left_of(cloud, self.server_id) == [], where

    def _is_as_it_says(self) -> bool:
        cloud = self.scene.cloud
        status = show(cloud, self.server_id)["status"]
        if self.job()["state"] != "done":
            return status == "ERROR" and not left_of(cloud, self.server_id)
        # A directory that is not there (yet) has no files.
        files = sorted(path.name for path in place(cloud, self.server_id).glob("*"))
        return status == "ACTIVE" and self._domain_state() == "running" and files == _WHOLE

    def _domain_state(self) -> str:
        return self.scene.cloud.libvirtd.virsh("domstate", self.server_id, check=False).strip()

    def _seen(self) -> dict[str, Any]:
        cloud, job = self.scene.cloud, self.job()
        return {
            "job": (job["state"], job["reason_code"]),
            "server": show(cloud, self.server_id).get("status"),
            "domain": self._domain_state(),
            "left": left_of(cloud, self.server_id),
        }


def ask_for_server(cloud: Cloud, image_id: str) -> NewServer:
    """Ask for a server of an image."""
    server_id = create(cloud, image_id)
    query = f"{cloud.api_url}/v1/jobs?instance_uuid={server_id}"
    job_id = requests.get(query, headers=ADMIN, timeout=10).json()["jobs"][0]["id"]
    return NewServer(scene=Scene(cloud), server_id=server_id, job_id=job_id)
