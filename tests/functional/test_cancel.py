# SPDX-License-Identifier: Apache-2.0
"""A job ends within a second when somebody wants it to, and leaves nothing; its rate can change."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import requests

from tests.functional.meddler import Meddler
from tests.functional.snapshots import ADMIN, DEMO, Asked, amid_upload, ask, leftovers, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

#: What a loaded machine may add to the second that we promise.
SOON_S = 5.0


@pytest.fixture
def uploading(cloud: Cloud, running_guest: Guest) -> Asked:
    """A snapshot in the middle of its upload."""
    return amid_upload(cloud, running_guest)


def assert_nothing_left(cloud: Cloud, asked: Asked) -> None:
    wait_for(lambda: asked.job()["finished_at"], "the end", SOON_S)
    assert asked.job()["state"] == "cancelled"
    assert asked.image() is None
    assert asked.guest.state() == "running"
    assert cloud.server(asked.guest)["OS-EXT-STS:task_state"] is None
    assert leftovers(cloud) == []


@pytest.mark.parametrize("method", ["backup", "overlay"])
def test_deleting_the_job_ends_it(
    cloud: Cloud, running_guest: Guest, agent_options: Callable[..., None], method: str
) -> None:
    agent_options(f"method = {method}")
    asked = amid_upload(cloud, running_guest)
    url = f"{cloud.api_url}/v1/jobs/{asked.job()['id']}"
    answer = requests.delete(url, headers=DEMO, timeout=10)
    assert answer.status_code == requests.codes.accepted
    assert_nothing_left(cloud, asked)
    assert requests.delete(url, headers=DEMO, timeout=10).status_code == requests.codes.conflict


def test_deleting_the_image_ends_the_job(cloud: Cloud, uploading: Asked) -> None:
    url = f"{cloud.glance.endpoint}/v2/images/{uploading.image_id}"
    requests.delete(url, timeout=10)
    assert_nothing_left(cloud, uploading)


def test_deleting_the_instance_ends_the_job(cloud: Cloud, new_guest: Callable[..., Guest]) -> None:
    guest = new_guest()
    asked = amid_upload(cloud, guest)
    cloud.libvirtd.virsh("undefine", guest.name)
    wait_for(lambda: asked.job()["finished_at"], "the end", SOON_S)
    assert "instance was deleted" in asked.job()["reason"]
    assert asked.image() is None
    assert leftovers(cloud) == []
    guest.define()


def test_a_job_that_waits_for_its_turn_can_be_cancelled(
    cloud: Cloud, uploading: Asked, new_guest: Callable[..., Guest]
) -> None:
    """It has not begun: its guest is not touched, its image is removed."""
    guests = [new_guest(start=False) for _ in range(2)]
    asked = [ask(cloud, guest) for guest in guests]
    for one in asked:
        url = f"{cloud.api_url}/v1/jobs/{one.job()['id']}"
        requests.delete(url, headers=DEMO, timeout=10)
    for one in asked:
        wait_for(lambda: one.job()["finished_at"], "the end", SOON_S)  # noqa: B023
        wait_for(lambda: one.image() is None, "the image to go", SOON_S)  # noqa: B023
    assert uploading.ended()["state"] == "done"


def test_a_running_job_obeys_another_limit(
    cloud: Cloud, running_guest: Guest, agent_options: Callable[..., None], meddler: Meddler
) -> None:
    agent_options("bandwidth_limit = 0")
    asked = ask(cloud, running_guest, **{"stillframe:bandwidth_limit": "5"})
    wait_for(lambda: asked.job()["bytes_done"] > 0, "the first bytes")
    began = time.monotonic()
    before = asked.job()["bytes_done"]
    wait_for(lambda: asked.job()["bytes_done"] > before + (5 << 20), "5 MiB more")
    assert time.monotonic() - began > 0.5, "5 MB/s are the limit"
    url = f"{cloud.api_url}/v1/jobs/{asked.job()['id']}"
    denied = requests.patch(url, json={"bandwidth_limit": 0}, headers=DEMO, timeout=10)
    assert denied.status_code == requests.codes.forbidden, "the host's limits are the operator's"
    requests.patch(url, json={"bandwidth_limit": 0}, headers=ADMIN, timeout=10)
    job = wait_for(lambda: asked.job() if asked.job()["finished_at"] else None, "the end", 10)
    assert job["state"] == "done"
    assert job["options"]["bandwidth_limit"] == 0
