# SPDX-License-Identifier: Apache-2.0
"""Backups that rotate, by the stock client and against a real Glance."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from tests.functional.snapshots import (
    DEMO,
    Asked,
    leftovers,
    log_lines,
    openstack,
    post_action,
    wait_for,
)
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

NewGuest = Callable[..., Guest]

BIN = Path(sys.executable).parent
PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}


def backup(cloud: Cloud, guest: Guest, rotation: int) -> Asked:
    """Ask for a daily backup."""
    body = {"name": "by-rest", "backup_type": "daily", "rotation": rotation}
    answer = post_action(cloud, guest, {"createBackup": body})
    assert answer.status_code == requests.codes.accepted, answer.text
    return Asked(cloud, guest, answer.json()["image_id"])


def ends_well(asked: Asked) -> None:
    """Wait until a backup is done."""
    job = asked.ended()
    assert job["state"] == "done", job["reason"]


def by_client(cloud: Cloud, guest: Guest, name: str) -> Asked:
    """Take a daily backup with the stock client, of which two are kept, and wait as it does.

    What it prints is the image as it found it before it waited.
    """
    words = ["server", "backup", "create", "--name", name, "--type", "daily", "--rotate", "2"]
    image = openstack(cloud, *words, "--wait", guest.uuid, bin_directory=BIN)
    properties = image["properties"]
    assert (properties["image_type"], properties["backup_type"]) == ("backup", "daily")
    asked = Asked(cloud, guest, image["id"])
    assert (image["name"], standing(asked)) == (name, ["active"])
    ends_well(asked)
    return asked


def standing(*backups: Asked) -> list[str]:
    """Return the status of each image that is left."""
    images: list[dict[str, Any] | None] = [asked.image() for asked in backups]
    return [image["status"] if image else "gone" for image in images]


def test_the_stock_client_keeps_two_of_three_and_a_protected_one_stays(
    cloud: Cloud, new_guest: NewGuest
) -> None:
    guest = new_guest(start=False)
    first, second, third = (by_client(cloud, guest, f"day-{number}") for number in range(3))
    wait_for(lambda: standing(first) == ["gone"], "the rotation")
    assert standing(second, third) == ["active", "active"]

    url = f"{cloud.glance.endpoint}/v2/images/{second.image_id}"
    protect = [{"op": "replace", "path": "/protected", "value": True}]
    requests.patch(url, json=protect, headers=PATCH, timeout=10).raise_for_status()
    fourth = backup(cloud, guest, 1)
    ends_well(fourth)
    wait_for(lambda: standing(third) == ["gone"], "the rotation")
    assert standing(second, fourth) == ["active", "active"]
    told = f"after job {fourth.job()['id']}: 1 removed, 1 protected"
    wait_for(lambda: log_lines(cloud, "n-api.log", told), "the log's line")


def test_an_agent_that_dies_in_a_backup_and_a_cancel_remove_nothing(
    cloud: Cloud, new_guest: NewGuest, agent_options: Callable[..., None]
) -> None:
    guest = new_guest(start=False)
    first = backup(cloud, guest, 1)
    ends_well(first)
    agent_options("bandwidth_limit = 25")
    second = backup(cloud, guest, 1)
    wait_for(lambda: second.job()["bytes_done"] > 0, "bytes on their way")
    cloud.agent.kill()
    url = f"{cloud.api_url}/v1/jobs/{second.job()['id']}"
    requests.delete(url, headers=DEMO, timeout=10).raise_for_status()
    assert standing(first) == ["active"]
    cloud.start_agent()
    assert second.ended()["state"] == "cancelled"
    wait_for(lambda: standing(second) == ["gone"], "the end of what was begun")
    assert standing(first) == ["active"]

    third = backup(cloud, guest, 1)
    ends_well(third)
    wait_for(lambda: standing(first) == ["gone"], "the rotation")
    assert standing(third) == ["active"]
    assert leftovers(cloud) == []
