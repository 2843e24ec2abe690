# SPDX-License-Identifier: Apache-2.0
"""A backup policy against the real parts: it makes backups, and removes those it lets go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import requests

from tests.functional.snapshots import DEMO, Asked, leftovers, log_lines, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

NewGuest = Callable[..., Guest]


def ask(cloud: Cloud, method: str, url: str, body: Any = None) -> Any:
    """Ask the API; return what it says."""
    answer = requests.request(method, cloud.api_url + url, json=body, headers=DEMO, timeout=30)
    assert answer.ok, answer.text
    return answer.json() if answer.content else None


def backup(cloud: Cloud, guest: Guest, policy: dict[str, Any]) -> Asked:
    """Run a policy now; return its backup, once the run has ended."""
    url = f"/v1/policies/{policy['id']}"
    (asked,) = ask(cloud, "POST", f"{url}/run")["runs"]

    def run() -> dict[str, Any]:
        runs = ask(cloud, "GET", f"{url}/runs")["runs"]
        found: dict[str, Any] = next(one for one in runs if one["id"] == asked["id"])
        return found

    wait_for(lambda: run()["finished_at"], "the end of the run")
    assert run()["state"] == "done", run()["reason"]
    job = ask(cloud, "GET", f"/v1/jobs/{run()['job_id']}")["job"]
    assert (job["kind"], job["policy_id"]) == ("backup", policy["id"])
    return Asked(cloud, guest, job["image_id"])


def test_a_policy_makes_a_backup_sees_it_boot_and_removes_the_one_before(
    cloud: Cloud, new_guest: NewGuest
) -> None:
    guest = new_guest(start=False)
    wish = {
        "name": "nightly",
        "schedule": {"cron": "0 0 1 1 *"},
        "instances": {"ids": [guest.uuid]},
        "retention": {"last": 1},
        "verify": True,
    }
    policy = ask(cloud, "POST", "/v1/policies", {"policy": wish})["policy"]
    first = backup(cloud, guest, policy)
    second = backup(cloud, guest, policy)
    assert first.image() is None
    image = second.image()
    assert image is not None
    assert (image["status"], image["backup_type"]) == ("active", "nightly")
    assert image["stillframe_verified"] == "yes"
    url = f"/v1/policies/{policy['id']}"
    (kept,) = ask(cloud, "GET", f"{url}/retention")["backups"]
    assert (kept["image_ids"], kept["rules"]) == ([second.image_id], ["last"])

    ask(cloud, "DELETE", url)
    assert second.image() is not None, "what it had made stays"
    assert log_lines(cloud, "n-api.log", "has a backup of instance", policy["id"], guest.uuid)
    assert leftovers(cloud) == []
