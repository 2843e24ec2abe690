# SPDX-License-Identifier: Apache-2.0
"""A new server's networks are those of a host: one that has them all, or a refusal beforehand."""

from __future__ import annotations

import pytest

from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.new_servers import ADMIN, message_of, post, wish

LAN = "0c4a9c5e-3f0b-4f0f-8c2a-2f6f4e0b1a11"


@pytest.fixture(autouse=True)
def _two_hosts(cloud: Cloud, image: str) -> None:
    """Both have a network of the one name; only one has the other."""
    cloud.announce(networks={"lan": LAN})
    cloud.announce(host="other", networks={"lan": LAN, "dmz": LAN.replace("0", "1")})


def asks(*networks: str) -> list[dict[str, str]]:
    return [{"uuid": network} for network in networks]


def test_a_network_that_no_host_has_is_refused_before_anything_happens(
    cloud: Cloud, image: str
) -> None:
    reply = post(cloud, wish(image, networks=asks("lan", "wan")))
    assert reply.status_code == 400, reply.text
    assert message_of(reply) == "Network wan could not be found."
    assert cloud.casts.empty()
    assert cloud.get("/v2.1/servers").json["servers"] == []


@pytest.mark.parametrize("network", ["dmz", LAN.replace("0", "1")])
def test_a_host_that_has_the_network_is_chosen(cloud: Cloud, image: str, network: str) -> None:
    assert post(cloud, wish(image, networks=asks(network, "lan"))).status_code == 202
    assert cloud.casts.next()["host"] == "other"


def test_a_network_of_another_host_than_the_one_that_was_named_is_not_there(
    cloud: Cloud, image: str
) -> None:
    asked = wish(image, networks=asks("dmz"), host=agent_says.HOST)
    assert "dmz could not be found" in message_of(post(cloud, asked, who=ADMIN))


def test_an_older_agent_that_does_not_say_looks_itself(cloud: Cloud, image: str) -> None:
    cloud.announce()
    assert post(cloud, wish(image, networks=asks("wan"))).status_code == 202
    assert cloud.casts.next()["host"] == agent_says.HOST


def test_who_asks_for_none_in_particular_gets_the_operators_default(
    cloud: Cloud, image: str
) -> None:
    object.__setattr__(cloud.services.lifecycle, "default_network", "lan")
    for version, networks in (("2.96", "auto"), ("2.36", None)):
        assert post(cloud, wish(image, networks=networks), version=version).status_code == 202
        assert cloud.casts.next()["networks"] == ["lan"]
    assert post(cloud, wish(image, networks="none")).status_code == 202
    assert cloud.casts.next()["networks"] == []
