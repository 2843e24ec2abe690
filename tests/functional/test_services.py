# SPDX-License-Identifier: Apache-2.0
"""Other services of the cloud: the examples of docs/examples, unmodified and as processes."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest
import requests

from tests.functional.conftest import python
from tests.functional.snapshots import ADMIN, Asked, leftovers, log_lines, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.prepare import ROOT

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def service_config(cloud: Cloud, tmp_path: Path) -> Path:
    """The configuration of a service that is none of ours: the broker, and nothing else."""
    path = tmp_path / "service.conf"
    path.write_text(
        f"[DEFAULT]\ntransport_url = {cloud.transport_url}\n"
        "[oslo_messaging_rabbit]\nrabbit_quorum_queue = true\n"
    )
    return path


def run(example: str, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example elsewhere than in our tree, which it must not need."""
    command = [python(), str(EXAMPLES / example), "--config-file", str(config), *arguments]
    return subprocess.run(
        command,
        cwd=config.parent,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_service_has_a_snapshot_taken_by_the_api(
    cloud: Cloud, running_guest: Guest, service_config: Path
) -> None:
    who = ("--project", "demo", "--user", "backup-service")
    done = run("cast_snapshot.py", service_config, "--instance", running_guest.uuid, *who)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_, last = map(json.loads, done.stdout.splitlines())
    assert first["job_id"] == last["job_id"]
    assert (last["state"], last["progress"], last["error"]) == ("done", 100, None)
    image = Asked(cloud, running_guest, last["image_id"]).image()
    assert image is not None
    assert (image["status"], image["name"]) == ("active", "from-a-service")
    assert (image["owner"], image["made_by"]) == ("demo", "cast_snapshot.py")
    assert log_lines(cloud, "n-api.log", "User backup-service of project demo asks for a snapshot")
    assert leftovers(cloud) == []


def test_a_service_is_told_why_it_is_refused(
    cloud: Cloud, running_guest: Guest, service_config: Path
) -> None:
    who = ("--project", "another", "--user", "backup-service")
    done = run("cast_snapshot.py", service_config, "--instance", running_guest.uuid, *who)
    assert done.returncode == 1, done.stderr
    assert done.stdout, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error == {
        "code": "not_found",
        "message": f"Instance {running_guest.uuid} could not be found.",
        "retryable": False,
    }


def test_a_service_casts_straight_to_an_agent(
    cloud: Cloud, running_guest: Guest, service_config: Path
) -> None:
    record = {"name": "of-a-service", "disk_format": "qcow2", "container_format": "bare"}
    url = f"{cloud.glance.endpoint}/v2/images"
    image_id = requests.post(url, json=record, timeout=30).json()["id"]
    named = ("--instance", running_guest.uuid, "--image", image_id)
    done = run("cast_to_agent.py", service_config, "--host", cloud.host, *named)
    assert done.returncode == 0, done.stderr
    job_url = f"{cloud.api_url}/v1/jobs/{done.stdout.strip()}"
    wait_for(lambda: requests.get(job_url, headers=ADMIN, timeout=10).json().get("job"), "the job")
    asked = Asked(cloud, running_guest, image_id)
    job = asked.ended()
    assert (job["state"], job["id"]) == ("done", done.stdout.strip())
    image = asked.image()
    assert image is not None
    assert image["status"] == "active"


def test_a_cast_to_a_host_without_an_agent_is_told(cloud: Cloud, service_config: Path) -> None:
    named = ("--instance", str(uuid.uuid4()), "--image", str(uuid.uuid4()))
    done = run("cast_to_agent.py", service_config, "--host", "nowhere", *named)
    assert (done.returncode, "No agent listens for host nowhere" in done.stderr) == (1, True)
