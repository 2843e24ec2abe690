# SPDX-License-Identifier: Apache-2.0
"""What Nova has and this service has not is refused in words, and never with a 5xx."""

from __future__ import annotations

from typing import Any

import pytest

from common.reports import InstanceRecord
from tests.api.clouds import Cloud, headers

DEMO, OTHER = "demo:p-demo", "eve:p-other"
REFUSED = [
    ("DELETE", "/servers/{uuid}", None),
]


def ask(cloud: Cloud, method: str, path: str, body: Any = None, who: str = DEMO) -> Any:
    sent = headers(who, "2.100")
    return cloud.http.simulate_request(method, f"/v2.1{path}", json=body, headers=sent)


@pytest.mark.parametrize(("method", "path", "body"), REFUSED)
def test_what_is_not_offered_is_403_with_a_sentence(
    cloud: Cloud, instance: InstanceRecord, method: str, path: str, body: Any
) -> None:
    reply = ask(cloud, method, path.format(uuid=instance.uuid), body)
    assert reply.status_code == 403
    assert reply.json["forbidden"]["message"].endswith(".")
    assert cloud.casts.empty()
    assert cloud.server(instance.uuid)["status"] == "ACTIVE"


@pytest.mark.parametrize(("method", "path", "body"), REFUSED)
def test_of_another_projects_server_not_even_that_is_said(
    cloud: Cloud, instance: InstanceRecord, method: str, path: str, body: Any
) -> None:
    reply = ask(cloud, method, path.format(uuid=instance.uuid), body, OTHER)
    assert reply.status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/servers/detail"),
        ("PUT", "/servers"),
        ("PATCH", "/servers/{uuid}"),
        ("GET", "/servers/{uuid}/action"),
        ("HEAD", "/servers/{uuid}"),
        ("POST", "/flavors"),
        ("DELETE", "/flavors/m1.tiny"),
        ("GET", "/servers/{uuid}/os-interface"),
        ("GET", "/servers/{uuid}/os-volume_attachments"),
        ("GET", "/servers/{uuid}/shares"),
        ("GET", "/os-keypairs"),
        ("GET", "/os-server-groups"),
        ("PUT", "/os-services/disable"),
        ("PATCH", "/servers/{uuid}/metadata"),
    ],
)
def test_what_there_is_not_is_404_as_a_route_that_nobody_has(
    cloud: Cloud, instance: InstanceRecord, method: str, path: str
) -> None:
    reply = ask(cloud, method, path.format(uuid=instance.uuid))
    assert reply.status_code == 404
    if method != "HEAD":
        assert set(reply.json) == {"code", "title", "message"}


@pytest.mark.parametrize("path", ["/servers", "/servers/{uuid}", "/flavors", "/limits"])
def test_options_are_told(cloud: Cloud, instance: InstanceRecord, path: str) -> None:
    reply = ask(cloud, "OPTIONS", path.format(uuid=instance.uuid))
    assert (reply.status_code, "GET" in reply.headers["allow"]) == (200, True)


def test_an_action_that_nova_has_not_is_400(cloud: Cloud, instance: InstanceRecord) -> None:
    reply = ask(cloud, "POST", f"/servers/{instance.uuid}/action", {"explode": None})
    assert reply.status_code == 400


def test_what_nova_does_and_we_do_not_is_refused_only_to_who_sees_the_server(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    action, path = {"suspend": None}, f"/servers/{instance.uuid}/action"
    assert ask(cloud, "POST", path, action, OTHER).status_code == 404
    reply = ask(cloud, "POST", path, action)
    assert reply.status_code == 400
    assert reply.json["badRequest"]["message"] == "There is no such action: suspend"
