# SPDX-License-Identifier: Apache-2.0
"""New servers on libvirt's networks: on the bridge that was asked for, or refused, or in error."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.functional.snapshots import ADMIN, DEMO, log_lines, wait_for
from tests.functional.test_spawn import delete, left_of, show, upload, wait_for_status
from tools.stack.cloud import Cloud
from tools.stack.network import Network


@pytest.fixture(scope="module")
def network(cloud: Cloud) -> Iterator[Network]:
    with Network(cloud.libvirtd, cloud.directory, "lan").started() as network:
        yield network


@pytest.fixture(scope="module")
def image_id(cloud: Cloud) -> str:
    """A disk with nothing on it: what matters here is there before a guest would boot."""
    return upload(cloud, bytes(1 << 20), "raw")


def known_networks(cloud: Cloud) -> dict[str, str]:
    """Return what the host tells of its networks: their ids by name."""
    hosts = requests.get(f"{cloud.api_url}/v1/hosts", headers=ADMIN, timeout=10).json()["hosts"]
    found: dict[str, str] = hosts[0]["hypervisor"]["networks"]
    return found


def ask_for(cloud: Cloud, image_id: str, networks: Any) -> requests.Response:
    server = {"name": "on-a-net", "imageRef": image_id, "flavorRef": "m1.tiny"}
    body = {"server": {**server, "networks": networks}}
    return requests.post(f"{cloud.api_url}/v2.1/servers", json=body, headers=DEMO, timeout=30)


def made(cloud: Cloud, image_id: str, networks: Any) -> str:
    answer = ask_for(cloud, image_id, networks)
    assert answer.status_code == requests.codes.accepted, answer.text
    server_id: str = answer.json()["server"]["id"]
    return server_id


def interfaces_of(cloud: Cloud, server_id: str) -> list[ET.Element]:
    domain = ET.fromstring(cloud.libvirtd.virsh("dumpxml", server_id))  # noqa: S314 # libvirt's
    return domain.findall("devices/interface")


def ports_of(network: Network) -> list[str]:
    return [path.name for path in Path(f"/sys/class/net/{network.bridge}/brif").iterdir()]


def test_a_server_is_on_the_bridge_of_its_network_until_it_is_deleted(
    cloud: Cloud, network: Network, image_id: str
) -> None:
    # The agent is told by libvirt of each network that comes or goes.
    network_id = wait_for(lambda: known_networks(cloud).get(network.name), "the network")
    server_id = made(cloud, image_id, [{"uuid": network_id}])
    server = wait_for_status(cloud, server_id, "ACTIVE")
    (interface,) = interfaces_of(cloud, server_id)
    source, target, mac = (interface.find(name) for name in ("source", "target", "mac"))
    assert source is not None
    assert target is not None
    assert mac is not None
    assert (source.get("network"), source.get("bridge")) == (network.name, network.bridge)
    assert ports_of(network) == [target.get("dev")]
    assert mac.get("address", "").startswith("52:54:00:")
    assert server["addresses"] == {}, "docs/instances.md: there are no ports"
    delete(cloud, server_id)
    assert left_of(cloud, server_id) == []
    assert ports_of(network) == []


@pytest.mark.parametrize("networks", ["none", "auto"])
def test_a_server_that_asks_for_none_has_no_interface(
    cloud: Cloud, network: Network, image_id: str, networks: str
) -> None:
    server_id = made(cloud, image_id, networks)
    wait_for_status(cloud, server_id, "ACTIVE")
    assert interfaces_of(cloud, server_id) == []
    delete(cloud, server_id)


def test_a_network_that_no_host_has_is_refused_before_anything_happens(
    cloud: Cloud, network: Network, image_id: str
) -> None:
    wait_for(lambda: network.name in known_networks(cloud), "the network")
    servers = "/v2.1/servers?name=on-a-net&all_tenants=1"
    before = cloud.get(servers)
    answer = ask_for(cloud, image_id, [{"uuid": network.name}, {"uuid": "nowhere-net"}])
    assert answer.status_code == requests.codes.bad_request
    assert answer.json()["badRequest"]["message"] == "Network nowhere-net could not be found."
    assert cloud.get(servers) == before
    assert not log_lines(cloud, "n-cpu.log", "nowhere-net")


def test_a_network_that_is_not_started_ends_the_server_in_error_and_leaves_nothing(
    cloud: Cloud, image_id: str
) -> None:
    off = Network(cloud.libvirtd, cloud.directory, "switched-off")
    off.define()
    try:
        wait_for(lambda: off.name in known_networks(cloud), "the network")
        server_id = made(cloud, image_id, [{"uuid": off.name}])
        fault = wait_for_status(cloud, server_id, "ERROR")["fault"]["message"]
        assert fault == f"network {off.name} is not started on the instance's host"
        assert left_of(cloud, server_id) == []
        delete(cloud, server_id)
    finally:
        off.remove()
    wait_for(lambda: off.name not in known_networks(cloud), "its end")
    assert not show(cloud, server_id)
