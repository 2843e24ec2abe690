# SPDX-License-Identifier: Apache-2.0
"""A real Keystone before API and Glance: each sees their own, and work outlives its token.

Every action by every role is in tests/api/test_roles.py; here is a part of it
with real tokens.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.functional.snapshots import TIMEOUT_S, openstack, wait_for
from tools.stack import keystone as keystone_tools
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest, GuestWish
from tools.stack.keystone import SERVICE_USER

BIN = Path(sys.executable).parent
#: Short enough for an upload to outlive it.
TOKEN_LIFE_S = 8
#: MB/s: the test guest has more than 50 MB.
SLOW = "6"


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """The API and Glance, as one user of the cloud sees them."""

    cloud: Cloud
    user: str

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        """Ask the API with a new token."""
        return self._ask(self.cloud.api_url + path, method, body, **headers)

    def act(self, guest: Guest, body: Any) -> requests.Response:
        """Do something to a guest."""
        return self.ask("POST", f"/v2.1/servers/{guest.uuid}/action", body)

    def image(self, image_id: str) -> requests.Response:
        """Ask Glance for an image."""
        return self._ask(f"{self.cloud.glance.endpoint}/v2/images/{image_id}", "GET")

    def _ask(self, url: str, method: str, body: Any = None, **headers: str) -> requests.Response:
        named = {"X-Auth-Token": self.cloud.identity.token(self.user)}
        named |= {"OpenStack-API-Version": "compute 2.96", **headers}
        return requests.request(method, url, json=body, headers=named, timeout=30)


@pytest.fixture(scope="module")
def cloud(keystone_cloud: Callable[[int], Cloud]) -> Cloud:
    """The cloud with a Keystone stands in for the one that believes everybody."""
    return keystone_cloud(TOKEN_LIFE_S)


@pytest.fixture(scope="module")
def guest(cloud: Cloud) -> Iterator[Guest]:
    """A guest of project `demo`, switched off."""
    guest = cloud.guest(GuestWish(name="test-owned"))
    guest.define()
    cloud.wait_for_instance(guest, "SHUTOFF")
    yield guest
    guest.remove()


def snapshot(name: str, **metadata: str) -> dict[str, Any]:
    """Return the body that asks for one."""
    return {"createImage": {"name": name, "metadata": metadata}}


ANSWERS = {
    "demo": (200, 202, 403),
    "demo-reader": (200, 403, 403),
    "other": (404, 404, 403),
    "admin": (200, 202, 200),
}


@pytest.mark.parametrize("user", ANSWERS)
def test_each_role_is_answered_as_nova_would(cloud: Cloud, guest: Guest, user: str) -> None:
    """Another project's server is 404 and never 403."""
    who = Caller(cloud, user)
    answers = (
        who.ask("GET", f"/v2.1/servers/{guest.uuid}").status_code,
        who.act(guest, {"lock": None}).status_code,
        who.ask("GET", "/v2.1/os-services").status_code,
    )
    Caller(cloud, "admin").act(guest, {"unlock": None})
    assert answers == ANSWERS[user]


def test_a_snapshot_outlives_every_token_and_belongs_to_the_project(
    cloud: Cloud, guest: Guest
) -> None:
    """The token of the one who asked, and the one that the upload began with."""
    demo, other = Caller(cloud, "demo"), Caller(cloud, "other")
    old = cloud.identity.token("demo")
    answer = demo.act(guest, snapshot("slow", **{"stillframe:bandwidth_limit": SLOW}))
    assert answer.status_code == requests.codes.accepted, answer.text
    image_id = answer.json()["image_id"]

    def job() -> Any:
        jobs = demo.ask("GET", f"/v1/jobs?instance_uuid={guest.uuid}").json()["jobs"]
        return next(job for job in jobs if job["image_id"] == image_id)

    wait_for(lambda: job()["finished_at"], "the end of the job", TIMEOUT_S)
    ended = job()
    assert ended["state"] == "done", ended
    (stream,) = [step for step in ended["steps"] if step["name"] == "stream"]
    assert stream["ended_at"] - stream["began_at"] > TOKEN_LIFE_S, "or this proves nothing"

    image = demo.image(image_id).json()
    assert (image["status"], image["owner"], image["visibility"]) == ("active", "demo", "private")
    assert other.image(image_id).status_code == requests.codes.not_found
    assert other.ask("GET", f"/v1/jobs/{ended['id']}").status_code == requests.codes.not_found

    # The user's token has expired by now; a service may still work with it.
    assert demo.ask("GET", "/v2.1/servers", **{"X-Auth-Token": old}).status_code == 401
    service = {"X-Auth-Token": old, "X-Service-Token": cloud.identity.token(SERVICE_USER)}
    listed = demo.ask("GET", "/v2.1/servers", **service).json()["servers"]
    assert [one["id"] for one in listed] == [guest.uuid]


def test_the_daemons_user_is_no_administrator_of_the_cloud(cloud: Cloud, guest: Guest) -> None:
    """What a hypervisor's files give away is images, not the cloud."""
    stillframe = Caller(cloud, SERVICE_USER)
    assert stillframe.ask("GET", f"/v2.1/servers/{guest.uuid}").status_code == 404
    keystone = cloud.identity
    assert isinstance(keystone, keystone_tools.Keystone)
    headers = {"X-Auth-Token": keystone.token(SERVICE_USER)}
    answer = requests.get(f"{keystone.url}/users", headers=headers, timeout=30)
    assert answer.status_code == requests.codes.forbidden


def test_stock_clients_log_in_and_see_their_own(cloud: Cloud, guest: Guest) -> None:
    assert openstack(cloud, "server", "list", bin_directory=BIN, who="stillframe-other") == []
    words = ["server", "image", "create", "--wait", "--name", "by-cli", guest.name]
    image = openstack(cloud, *words, bin_directory=BIN)
    assert (image["status"], image["owner"]) == ("active", "demo")
    assert Caller(cloud, "other").image(image["id"]).status_code == requests.codes.not_found
