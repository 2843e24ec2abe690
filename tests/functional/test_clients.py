# SPDX-License-Identifier: Apache-2.0
"""Stock clients, unmodified: the openstack command and openstacksdk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openstack as sdk
import openstack.config as sdk_config
import pytest

from tests.functional.conftest import ROOT, python
from tests.functional.snapshots import ask, openstack
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

BIN = Path(sys.executable).parent
NewGuest = Callable[..., Guest]


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


def test_stillframe_manage_broker_check_sees_the_agent(cloud: Cloud) -> None:
    said = cloud.manage("broker", "check").stdout
    assert f"stillframe-compute.{cloud.host}" in said
    assert said.rstrip().endswith("Healthy")


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

    def rows(*words: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = openstack(
            cloud, *words, bin_directory=BIN, who="stillframe-admin"
        )
        return found

    ask(cloud, running_guest).ended()
    (hypervisor,) = rows("hypervisor", "list")
    assert (hypervisor["State"], hypervisor["Hypervisor Type"]) == ("up", "QEMU")
    assert [row["Host"] for row in rows("compute", "service", "list")] == [cloud.host]
    assert [row["Zone Name"] for row in rows("availability", "zone", "list", "--compute")] == [
        "nova"
    ]
    assert "m1.tiny" in [row["Name"] for row in rows("flavor", "list")]
    events = rows("server", "event", "list", running_guest.uuid)
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
