# SPDX-License-Identifier: Apache-2.0
"""The stock client changes what a booted guest is at, and the instance shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.functional.snapshots import ADMIN, log_lines, post_action, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

BIN = Path(sys.executable).parent


def client(cloud: Cloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `openstack server ...`."""
    return subprocess.run(
        [str(BIN / "openstack"), "--os-cloud", "stillframe-demo", "server", *arguments],
        env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def do(cloud: Cloud, guest: Guest, action: str, status: str, *more: str) -> None:
    """Have the client do something, and wait until the instance shows it."""
    done = client(cloud, action, *more, guest.uuid)
    assert done.returncode == 0, done.stderr
    wait_for(
        lambda: (
            cloud.server(guest)["status"] == status
            and cloud.server(guest)["OS-EXT-STS:task_state"] is None
        ),
        f"{status} after {action}",
    )


def test_openstack_pauses_stops_starts_reboots_and_locks(
    cloud: Cloud, new_guest: Callable[..., Guest]
) -> None:
    guest = new_guest()
    do(cloud, guest, "pause", "PAUSED")
    assert guest.state() == "paused"
    do(cloud, guest, "unpause", "ACTIVE")
    assert guest.state() == "running"
    do(cloud, guest, "stop", "SHUTOFF")
    assert guest.state() == "shut off"
    assert any("stopping" in words for words in guest.console.words), "it shut down by itself"
    do(cloud, guest, "start", "ACTIVE")
    guest.console.wait_for_a_record()
    before = sum("ready" in words for words in guest.console.words)
    do(cloud, guest, "reboot", "ACTIVE")
    wait_for(lambda: sum("ready" in words for words in guest.console.words) > before, "its boot")
    do(cloud, guest, "reboot", "ACTIVE", "--hard")
    client(cloud, "lock", guest.uuid)
    refused = client(cloud, "stop", guest.uuid)
    assert f"Instance {guest.uuid} is locked" in refused.stderr
    do(cloud, guest, "unlock", "ACTIVE")


def job_of(cloud: Cloud, guest: Guest) -> dict[str, Any]:
    """Return the guest's newest job."""
    query = f"{cloud.api_url}/v1/jobs?instance_uuid={guest.uuid}"
    jobs = requests.get(query, headers=ADMIN, timeout=10).json()["jobs"]
    newest: dict[str, Any] = jobs[0]
    return newest


@pytest.mark.parametrize(
    ("body", "state", "status"),
    [
        ({"os-stop": None}, "shut off", "SHUTOFF"),
        ({"reboot": {"type": "SOFT"}}, "running", "ACTIVE"),
    ],
)
def test_a_change_in_which_the_agent_dies_is_done_by_the_next_one(
    cloud: Cloud, new_guest: Callable[..., Guest], body: dict[str, Any], state: str, status: str
) -> None:
    guest = new_guest()
    run = guest.run_id()
    assert post_action(cloud, guest, body).status_code == requests.codes.accepted
    wait_for(lambda: job_of(cloud, guest)["step"], "the agent to be at it")
    cloud.agent.kill()
    cloud.start_agent()
    wait_for(lambda: job_of(cloud, guest)["state"] == "done", "its end")
    assert log_lines(cloud, "n-cpu.log", job_of(cloud, guest)["id"], "it goes on"), "killed in it"
    assert guest.state() == state
    assert guest.run_id() != run
    assert cloud.server(guest)["status"] == status
