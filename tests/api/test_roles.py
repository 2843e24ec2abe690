# SPDX-License-Identifier: Apache-2.0
"""Role by action by project, through HTTP: who may do what to whose server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from falcon import testing

from api_service.app import make_application, make_identity
from common.reports import InstanceRecord
from tests.api.clouds import Cloud
from tests.api.memory_images import MemoryImages
from tests.api.new_servers import SMALL, wish
from tests.api.played_keystone import OTHER, OWN, ROLES, ask, running, settings

SERVER = "/v2.1/servers/{id}"
ACTION = f"{SERVER}/action"
READERS, MEMBERS = {"reader", "member", "admin"}, {"member", "admin"}
#: (method, path, body, roles that may on a server of their own project)
MATRIX: tuple[tuple[str, str, Any, set[str]], ...] = (
    ("GET", SERVER, None, READERS),
    ("GET", f"{SERVER}/metadata", None, READERS),
    ("GET", f"{SERVER}/os-instance-actions", None, READERS),
    ("PUT", SERVER, {"server": {"name": "new"}}, MEMBERS),
    ("POST", f"{SERVER}/metadata", {"metadata": {"k": "v"}}, MEMBERS),
    ("PUT", f"{SERVER}/metadata", {"metadata": {"k": "v"}}, MEMBERS),
    ("PUT", f"{SERVER}/metadata/k", {"meta": {"k": "v"}}, MEMBERS),
    ("POST", ACTION, {"createImage": {"name": "x"}}, MEMBERS),
    (
        "POST",
        ACTION,
        {"createBackup": {"name": "x", "backup_type": "daily", "rotation": 1}},
        MEMBERS,
    ),
    ("POST", ACTION, {"pause": None}, MEMBERS),
    ("POST", ACTION, {"os-stop": None}, MEMBERS),
    ("POST", ACTION, {"reboot": {"type": "HARD"}}, MEMBERS),
    ("POST", ACTION, {"lock": None}, MEMBERS),
    ("POST", ACTION, {"unlock": None}, MEMBERS),
    ("POST", ACTION, {"os-resetState": {"state": "active"}}, {"admin"}),
)


@pytest.fixture(scope="module")
def keystone() -> Iterator[str]:
    """URL of a Keystone."""
    with running() as url:
        yield url


@pytest.fixture
def http(cloud: Cloud, keystone: str) -> testing.TestClient:
    """The API, behind Keystone."""
    return testing.TestClient(
        make_application(cloud._services(), make_identity(settings(keystone)))
    )


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("method", "path", "body", "may"),
    MATRIX,
    ids=[f"{method} {path} {next(iter(body or ['']))}" for method, path, body, _ in MATRIX],
)
def test_a_role_may_do_to_a_server_exactly_this(
    http: testing.TestClient,
    instance: InstanceRecord,
    role: str,
    method: str,
    path: str,
    body: Any,
    may: set[str],
) -> None:
    """Another project's is not there for anybody but administrators: 404, never 403."""
    path = path.format(id=instance.uuid)
    others = ask(http, f"{role}@{OTHER}", path, method, body).status_code
    own = ask(http, f"{role}@{OWN}", path, method, body).status_code
    if role == "admin":
        # The first of the two may keep the server busy.
        assert others in {200, 202}
        assert own in {200, 202, 409}
    else:
        assert others == 404
        assert own in ({200, 202} if role in may else {403})


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("/v2.1/servers", READERS),
        ("/v2.1/servers/detail", READERS),
        ("/v1/jobs", READERS),
        ("/v1/policies", READERS),
        ("/v2.1/servers?all_tenants=1", {"admin"}),
        ("/v2.1/os-services", {"admin"}),
        ("/v2.1/os-hypervisors/detail", {"admin"}),
        ("/v2.1/os-availability-zone/detail", {"admin"}),
        ("/v1/hosts", {"admin", "service"}),
        ("/v2.1/limits", set(ROLES)),
        ("/v2.1/os-availability-zone", set(ROLES)),
    ],
)
def test_a_role_may_list_exactly_this(
    http: testing.TestClient, instance: InstanceRecord, path: str, may: set[str]
) -> None:
    allowed = {role for role in ROLES if ask(http, f"{role}@{OWN}", path).status_code == 200}
    assert allowed == may
    refused = {role for role in ROLES if ask(http, f"{role}@{OWN}", path).status_code == 403}
    assert refused == set(ROLES) - may


@pytest.mark.parametrize("role", ["reader", "member"])
def test_lists_hold_nothing_of_another_project(
    cloud: Cloud, http: testing.TestClient, instance: InstanceRecord, role: str
) -> None:
    assert cloud.snapshot(instance.uuid).status_code == 202
    for path, what in (("/v2.1/servers/detail", "servers"), ("/v1/jobs", "jobs")):
        assert len(ask(http, f"{role}@{OWN}", path).json[what]) == 1
        assert ask(http, f"{role}@{OTHER}", path).json[what] == []


def test_members_make_and_delete_servers(
    cloud: Cloud, http: testing.TestClient, images: MemoryImages
) -> None:
    cloud.flavors["small"] = SMALL
    cloud.announce()
    body = wish(images.add(owner=OWN, disk_format="qcow2"))
    made = {role: ask(http, f"{role}@{OWN}", "/v2.1/servers", "POST", body) for role in ROLES}
    assert {role for role in ROLES if made[role].status_code == 202} == {"member", "admin"}
    assert {role for role in ROLES if made[role].status_code == 403} == {
        "nobody",
        "reader",
        "service",
    }
    url = f"/v2.1/servers/{made['member'].json['server']['id']}"
    assert ask(http, f"member@{OTHER}", url, "DELETE").status_code == 404
    assert ask(http, f"reader@{OWN}", url, "DELETE").status_code == 403
    assert ask(http, f"member@{OWN}", url, "DELETE").status_code == 204
