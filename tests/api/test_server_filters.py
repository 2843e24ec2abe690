# SPDX-License-Identifier: Apache-2.0
"""What a list of servers is narrowed down by, and what no filter may do."""

from __future__ import annotations

import time
import urllib.parse
from typing import Any

import pytest
from oslo_db import exception as db_errors

from common.reports import Flavor, InstanceRecord
from common.states import PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud

ADMIN = "admin:ops"


def names(reply: Any) -> list[str]:
    """Return the names in a list of servers, in order."""
    assert reply.status_code == 200, reply.text
    return sorted(server["name"] for server in reply.json["servers"])


def by_name(cloud: Cloud, pattern: str) -> Any:
    return cloud.get(f"/v2.1/servers?name={urllib.parse.quote(pattern)}")


@pytest.mark.timeout(30)
def test_no_expression_holds_the_process(cloud: Cloud) -> None:
    """Python's own matching goes back and tries again: this one would take it years."""
    cloud.announce(agent_says.instance(name="a" * 60))
    began = time.monotonic()
    assert names(by_name(cloud, "(a+)+b")) == []
    assert names(by_name(cloud, "^(a|a|aa)+$")) == ["a" * 60]
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "pattern",
    ["(" * 60_000, "x{99999999999", "(" * 200, "a{1000}{1000}{1000}", "(?=a)", r"(a)\1", "*", "\0"],
)
def test_what_cannot_be_matched_is_400_and_names_the_field(
    cloud: Cloud, instance: InstanceRecord, pattern: str
) -> None:
    reply = by_name(cloud, pattern)
    if pattern == "x{99999999999":
        assert names(reply) == []  # to this matcher, just letters
        return
    assert reply.status_code == 400
    words = reply.json["badRequest"]["message"]
    assert "name" in words or "NUL" in words


@pytest.mark.parametrize(
    "pattern",
    [
        "web-instance-7",
        "instance",
        "^web-instance-7$",
        "web.*7",
        r"^.*\-instance\-[0-9]+$",
        r"^.*\-instance\-.*$",
        "(web|db)-",
        "%",
    ],
)
def test_what_clients_send_is_matched(cloud: Cloud, pattern: str) -> None:
    """Tempest sends the two with the back slashes."""
    cloud.announce(agent_says.instance(name="web-instance-7"), agent_says.instance(name="x_y"))
    assert names(by_name(cloud, pattern)) == ([] if pattern == "%" else ["web-instance-7"])


def test_what_only_the_database_refuses_is_400_too(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise db_errors.DBError(ValueError("invalid regular expression"))

    monkeypatch.setattr(cloud.inventory, "_instances", refuse)
    assert by_name(cloud, "web").status_code == 400


def test_a_nul_reaches_no_database(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL takes none; here it would go unnoticed."""
    for url in ("/v2.1/servers?uuid=a%00&uuid=b", "/v1/jobs?instance_uuid=%00"):
        assert cloud.get(url).status_code == 400
    monkeypatch.setattr(cloud.inventory.__class__, "flavors", None)
    assert cloud.get("/v2.1/flavors/a%00").status_code == 404


@pytest.mark.parametrize("text", ["%C2%B2", "9" * 5000, "-1", "1_0", "%2B1", " 1", ""])
def test_a_limit_that_is_none_is_400(cloud: Cloud, instance: InstanceRecord, text: str) -> None:
    assert cloud.get(f"/v2.1/servers?limit={text}").status_code == 400


@pytest.mark.parametrize(
    "status", ["BUILD", "REBUILD", "resize", "SHELVED_OFFLOADED", "VERIFY_RESIZE", "UNKNOWN"]
)
def test_a_status_of_novas_that_none_is_in_is_an_empty_list(
    cloud: Cloud, instance: InstanceRecord, status: str
) -> None:
    assert names(cloud.get(f"/v2.1/servers?status={status}", version="2.96")) == []
    both = cloud.get(f"/v2.1/servers?status={status}&status=ACTIVE", version="2.96")
    assert names(both) == ["web"]


@pytest.fixture
def two(cloud: Cloud) -> list[InstanceRecord]:
    """Two instances that differ in everything."""
    one = agent_says.instance(name="one")
    other = agent_says.instance(
        name="other", project_id="p-other", user_id="eve", power_state=PowerState.SHUTDOWN
    )
    cloud.announce(one)
    cloud.announce(other, host="compute-2")
    cloud.snapshot(one.uuid)
    return [one, other]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("project_id=p-other", ["other"]),
        ("tenant_id=p-demo", ["one"]),
        ("user_id=eve", ["other"]),
        ("vm_state=stopped", ["other"]),
        ("vm_state=active&user_id=eve", []),
        ("task_state=image_snapshot_pending", ["one"]),
        ("host=compute-2", ["other"]),
        ("host=nowhere", []),
        ("deleted=True", []),
        ("deleted=False", ["one", "other"]),
        ("locked=True", []),
        ("locked=False", ["one", "other"]),
    ],
)
def test_an_administrators_filters_filter(
    cloud: Cloud, two: list[InstanceRecord], query: str, found: list[str]
) -> None:
    reply = cloud.get(f"/v2.1/servers/detail?all_tenants=1&{query}", ADMIN)
    assert names(reply) == found


def test_without_all_tenants_a_project_narrows_within_ones_own(
    cloud: Cloud, two: list[InstanceRecord]
) -> None:
    assert names(cloud.get("/v2.1/servers?project_id=p-other", ADMIN)) == []
    assert names(cloud.get("/v2.1/servers?project_id=p-demo", "admin:p-demo")) == ["one"]


def test_a_member_has_some_of_them_since_2_83(cloud: Cloud, two: list[InstanceRecord]) -> None:
    for query in ("user_id=eve", "vm_state=stopped", "task_state=nothing"):
        assert names(cloud.get(f"/v2.1/servers?{query}", version="2.82")) == ["one"]
        assert names(cloud.get(f"/v2.1/servers?{query}", version="2.83")) == []
    for query in ("project_id=p-other", "deleted=True"):
        assert names(cloud.get(f"/v2.1/servers?{query}", version="2.96")) == ["one"]
    assert names(cloud.get("/v2.1/servers?locked=True", version="2.72")) == ["one"]
    assert names(cloud.get("/v2.1/servers?locked=True", version="2.73")) == []


def test_the_flavor_of_the_last_instance_is_found(cloud: Cloud) -> None:
    """However many there are before it."""
    sizes = {"vcpus": 1, "memory_mib": 1, "disk_gib": 1}
    common = [
        agent_says.instance(flavor=Flavor(name="common", **sizes), created_at=2000.0 + number)
        for number in range(1000)
    ]
    rare = agent_says.instance(flavor=Flavor(name="rare", **sizes), created_at=1000.0)
    cloud.announce(*common, rare)
    assert cloud.get("/v2.1/flavors/rare").json["flavor"]["name"] == "rare"
    listed = [one["name"] for one in cloud.get("/v2.1/flavors").json["flavors"]]
    assert listed == ["common", "rare"]
