# SPDX-License-Identifier: Apache-2.0
"""Stock clients, unmodified: the openstack command, openstacksdk and novaclient."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import openstack as sdk
import openstack.config as sdk_config
import pytest
import requests
from keystoneauth1 import session as keystone_session
from keystoneauth1 import token_endpoint
from novaclient import client as novaclient
from novaclient import exceptions as novaclient_errors

from tests.functional.conftest import python
from tests.functional.snapshots import Asked, ask, openstack, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.prepare import ROOT

BIN = Path(sys.executable).parent
NewGuest = Callable[..., Guest]
T = TypeVar("T")


def at_once(run: Callable[[str], T], *words: str) -> list[T]:
    """Run several commands side by side: the client takes long to start."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, words))


def test_openstack_server_list_shows_the_instance(cloud: Cloud, running_guest: Guest) -> None:
    rows = openstack(cloud, "server", "list", bin_directory=BIN)
    (row,) = [row for row in rows if row["ID"] == running_guest.uuid]
    assert (row["Name"], row["Status"], row["Flavor"]) == (running_guest.name, "ACTIVE", "m1.tiny")


def test_openstack_server_show_finds_it_by_name(cloud: Cloud, running_guest: Guest) -> None:
    shown = openstack(cloud, "server", "show", running_guest.name, bin_directory=BIN)
    assert shown["id"] == running_guest.uuid


@pytest.mark.parametrize("version", ["2.1", "2.96"])
def test_openstack_server_image_create_waits_for_the_image(
    cloud: Cloud, running_guest: Guest, version: str
) -> None:
    """2.1 learns the image's id from the Location header, 2.96 from the body."""
    versioned = ["--os-compute-api-version", version, "server", "image", "create", "--wait"]
    image = openstack(
        cloud, *versioned, "--name", f"cli-{version}", running_guest.name, bin_directory=BIN
    )
    assert (image["name"], image["status"]) == (f"cli-{version}", "active")
    assert image["properties"]["instance_uuid"] == running_guest.uuid


def test_openstacksdk_creates_a_server_image_and_waits(cloud: Cloud, running_guest: Guest) -> None:
    config = sdk_config.OpenStackConfig(config_files=[str(cloud.clouds_file)], load_envvars=False)
    connection = sdk.connection.Connection(config=config.get_one("stillframe-demo"))
    try:
        image = connection.compute.create_server_image(
            running_guest.uuid, "from-sdk", wait=True, timeout=120
        )
        assert image.status == "active"
    finally:
        connection.close()


def test_novaclient_finds_snapshots_marks_and_locks_a_server(
    cloud: Cloud, new_guest: NewGuest
) -> None:
    guest = new_guest(start=False)
    auth = token_endpoint.Token(f"{cloud.api_url}/v2.1", "demo:demo")
    nova = novaclient.Client("2.96", session=keystone_session.Session(auth, timeout=30))
    server = nova.servers.find(id=guest.uuid)
    image_id = nova.servers.create_image(server, "from-novaclient", {"why": "a test"})
    asked = Asked(cloud, guest, image_id)
    wait_for(lambda: nova.servers.get(server).to_dict()["OS-EXT-STS:task_state"] is None, "the end")
    assert nova.instance_action.list(server)[0].action == "createImage"
    image = asked.image() or {}
    assert (image["status"], image["why"]) == ("active", "a test")
    nova.servers.set_meta(server, {"tier": "gold"})
    assert nova.servers.list(search_opts={"name": guest.name})[0].metadata == {"tier": "gold"}
    nova.servers.lock(server, reason="being looked at")
    assert nova.servers.get(server).locked_reason == "being looked at"
    nova.servers.unlock(server)
    with pytest.raises(novaclient_errors.NotFound):
        nova.servers.get("6d1a4ce2-1b5a-4a2c-8f6f-5cbd0e0b7c55")


def test_stillframe_manage_broker_check_sees_the_agent(cloud: Cloud) -> None:
    said = cloud.manage("broker", "check").stdout
    assert f"stillframe-compute.{cloud.host}" in said
    assert said.rstrip().endswith("Healthy")


def test_stillframe_manage_forgets_no_host_that_is_up_or_unknown(cloud: Cloud) -> None:
    for host, why in ((cloud.host, "is up"), ("nowhere", "ever heard of")):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            cloud.manage("host", "forget", host)
        assert why in failed.value.stderr


SERVE_ROOT = """
import falcon.testing
from api_service.wsgi import application
versions = falcon.testing.TestClient(application).simulate_get("/").json["versions"]
print([one["id"] for one in versions])
"""


def test_the_wsgi_application_is_importable_by_any_server(cloud: Cloud) -> None:
    done = subprocess.run(
        [python(), "-c", SERVE_ROOT],
        cwd=ROOT,
        env={**os.environ, "STILLFRAME_CONFIG_FILES": str(cloud.config_file)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.endswith("['v2.0', 'v2.1']\n"), done.stderr


def test_openstack_reads_what_else_there_is(cloud: Cloud, running_guest: Guest) -> None:
    """As an administrator: hosts are not a tenant's business."""

    def rows(words: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = openstack(
            cloud, *words.split(), bin_directory=BIN, who="stillframe-admin"
        )
        return found

    ask(cloud, running_guest).ended()
    (hypervisor,), services, zones, flavors, events = at_once(
        rows,
        "hypervisor list",
        "compute service list",
        "availability zone list --compute",
        "flavor list",
        f"server event list {running_guest.uuid}",
    )
    assert (hypervisor["State"], hypervisor["Hypervisor Type"]) == ("up", "QEMU")
    assert [row["Host"] for row in services] == [cloud.host]
    assert [row["Zone Name"] for row in zones] == ["nova"]
    assert "m1.tiny" in [row["Name"] for row in flavors]
    assert events[0]["Action"] == "createImage"
    event = openstack(
        cloud,
        *("server", "event", "show", running_guest.uuid, events[0]["Request ID"]),
        bin_directory=BIN,
    )
    assert "compute_snapshot_instance" in str(event["events"])


def test_openstack_names_and_marks_a_server(cloud: Cloud, new_guest: NewGuest) -> None:
    guest = new_guest(start=False)
    words = ["--os-compute-api-version", "2.96", "server", "set", "--name", "renamed"]
    words += ["--description", "mine", "--property", "k=v"]
    done = subprocess.run(
        [str(BIN / "openstack"), "--os-cloud", "stillframe-demo", *words, guest.uuid],
        env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = ["--os-compute-api-version", "2.96", "server", "show", "renamed"]
    shown = openstack(cloud, *words, bin_directory=BIN)
    assert (shown["id"], shown["description"], shown["properties"]) == (
        guest.uuid,
        "mine",
        {"k": "v"},
    )


def test_openstack_lists_servers_by_what_they_are(cloud: Cloud, running_guest: Guest) -> None:
    newest = ("--os-compute-api-version", "2.100", "server", "list")

    def ids(words: str) -> list[str]:
        who = "stillframe-admin" if "--all-projects" in words else "stillframe-demo"
        rows = openstack(cloud, *newest, *words.split(), bin_directory=BIN, who=who)
        return [row["ID"] for row in rows]

    wanted = "--flavor m1.tiny --power-state running --vm-state active"
    found, *others = at_once(
        ids,
        f"{wanted} --changes-since 2000-01-01T00:00:00Z",
        "--availability-zone elsewhere",
        "--changes-before 2000-01-01T00:00:00Z",
        "--deleted --all-projects",
    )
    assert running_guest.uuid in found
    assert all(running_guest.uuid not in other for other in others)


def test_openstack_shows_a_hypervisor(cloud: Cloud, running_guest: Guest) -> None:
    """An old version asks for the uptime in a request of its own."""

    def shown(version: str) -> dict[str, str]:
        versioned = ("--os-compute-api-version", version, "hypervisor")
        (listed,) = openstack(cloud, *versioned, "list", bin_directory=BIN, who="stillframe-admin")
        words = (*versioned, "show", listed["Hypervisor Hostname"])
        found: dict[str, str] = openstack(cloud, *words, bin_directory=BIN, who="stillframe-admin")
        return found

    for one in at_once(shown, "2.52", "2.100"):
        assert (one["state"], one["service_host"]) == ("up", cloud.host)


def test_what_is_refused_reads_well_in_the_stock_client(cloud: Cloud, running_guest: Guest) -> None:
    words = ("--os-cloud", "stillframe-demo", "server", "suspend")
    done = subprocess.run(
        [str(BIN / "openstack"), *words, running_guest.uuid],
        env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "There is no such action: suspend" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_old_proxy_shows_what_glance_has(cloud: Cloud, new_guest: NewGuest) -> None:
    guest = new_guest(start=False)
    image_id = ask(cloud, guest, "through-the-proxy").image_id
    url, old = f"{cloud.api_url}/v2.1/images", {"X-OpenStack-Nova-API-Version": "2.35"}
    demo = {"X-Auth-Token": "demo:demo"} | old

    def shown() -> dict[str, object]:
        answer = requests.get(f"{url}/{image_id}", headers=demo, timeout=30)
        image: dict[str, object] = answer.json()["image"]
        return image

    assert shown()["status"] in ("SAVING", "ACTIVE")
    wait_for(lambda: shown()["status"] == "ACTIVE", "the image")
    query = f"?type=snapshot&server={guest.uuid}&status=ACTIVE&changes-since=2000-01-01T00:00:00Z"
    listed = requests.get(f"{url}/detail{query}", headers=demo, timeout=30).json()["images"]
    assert [image["id"] for image in listed] == [image_id]
    assert listed[0]["created"].startswith("20")
    other = {"X-Auth-Token": "eve:other"} | old
    assert requests.get(f"{url}/{image_id}", headers=other, timeout=30).status_code == 404
    assert requests.get(url, headers=other, timeout=30).json()["images"] == []
    assert requests.delete(f"{url}/{image_id}", headers=other, timeout=30).status_code == 404
    wait_for(lambda: cloud.server(guest)["OS-EXT-STS:task_state"] is None, "the end")
    assert requests.delete(f"{url}/{image_id}", headers=demo, timeout=30).status_code == 204
    assert requests.get(f"{url}/{image_id}", headers=demo, timeout=30).status_code == 404
