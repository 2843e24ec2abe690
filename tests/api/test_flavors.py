# SPDX-License-Identifier: Apache-2.0
"""Lists of flavors: filters, orders, pages."""

from __future__ import annotations

from typing import Any

import pytest

from common.reports import Flavor, InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.test_create_image import message_of

ADMIN = "admin:ops"


@pytest.fixture
def three(cloud: Cloud) -> None:
    """Servers of three sizes."""
    sizes = [("a", 4, 512, 1), ("b", 1, 2048, 5), ("c", 2, 1024, 3)]
    cloud.announce(
        *(
            agent_says.instance(
                flavor=Flavor(name=name, vcpus=vcpus, memory_mib=memory, disk_gib=disk)
            )
            for name, vcpus, memory, disk in sizes
        )
    )


def names(reply: Any) -> str:
    assert reply.status_code == 200, reply.text
    return "".join(one["name"] for one in reply.json["flavors"])


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "abc"),
        ("sort_dir=desc", "cba"),
        ("sort_key=memory_mb", "acb"),
        ("sort_key=vcpus&sort_dir=desc", "acb"),
        ("sort_key=rxtx_factor&sort_dir=desc", "abc"),
        ("minRam=1024", "bc"),
        ("minDisk=4", "b"),
        ("minRam=-1", "abc"),
        ("limit=2", "ab"),
        ("limit=2&marker=b", "c"),
        ("limit=0", ""),
        ("is_public=None", "abc"),
        ("is_public=False", "abc"),
    ],
)
def test_what_is_asked_for_is_listed(cloud: Cloud, three: None, query: str, found: str) -> None:
    for path in ("flavors", "flavors/detail"):
        assert names(cloud.get(f"/v2.1/{path}?{query}")) == found


def test_an_administrator_finds_no_private_ones(cloud: Cloud, three: None) -> None:
    assert names(cloud.get("/v2.1/flavors?is_public=False", ADMIN)) == ""
    for query in ("is_public=True", "is_public=None", ""):
        assert names(cloud.get(f"/v2.1/flavors?{query}", ADMIN)) == "abc"


def test_a_link_leads_to_the_next_page(cloud: Cloud, three: None) -> None:
    reply = cloud.get("/v2.1/flavors?limit=2&sort_key=memory_mb")
    (link,) = reply.json["flavors_links"]
    second = cloud.get(link["href"].removeprefix("http://falconframework.org"))
    assert (names(reply), names(second)) == ("ac", "b")
    assert "flavors_links" not in second.json
    # A page that is full, with nothing behind it.
    assert "flavors_links" not in cloud.get("/v2.1/flavors?limit=3").json


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=x",
        "marker=none",
        "minRam=big",
        "minDisk=--1",
        "is_public=perhaps",
        "sort_key=colour",
        "sort_dir=up",
        "colour=red",
    ],
)
def test_nonsense_is_400(cloud: Cloud, three: None, query: str) -> None:
    message_of(cloud.get(f"/v2.1/flavors?{query}"), 400)


def test_of_another_flavor_there_is_no_word(cloud: Cloud, instance: InstanceRecord) -> None:
    for path in (
        "none",
        "none/os-extra_specs",
        "none/os-extra_specs/k",
        "m1.tiny/os-extra_specs/k",
    ):
        message_of(cloud.get(f"/v2.1/flavors/{path}"), 404)
