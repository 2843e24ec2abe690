# SPDX-License-Identifier: Apache-2.0
"""Tempest's published response schemas as the judge, at every microversion that we claim.

They allow no key that Nova does not have, so they also hold what is ours back.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from api_service.microversions import MAXIMUM
from api_service.store.job_lists import JobQuery
from api_service.store.overrides import Overrides
from common.reports import InstanceRecord
from common.states import PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, headers

rest_client = pytest.importorskip(
    "tempest.lib.common.jsonschema_validator", reason="tempest judges the shapes"
)
jsonschema = pytest.importorskip("jsonschema")

_PACKAGE = "tempest.lib.api_schema.response.compute"
VERSIONS = [f"2.{minor}" for minor in range(1, MAXIMUM.minor + 1)]
TOKENS = ("demo:p-demo", "admin:ops")


def schema(noun: str, name: str, version: str) -> dict[str, Any]:
    """Return tempest's newest schema of that name that is not newer than `version`."""
    for minor in range(int(version.partition(".")[2]), 0, -1):
        try:
            module = importlib.import_module(f"{_PACKAGE}.v2_{minor}.{noun}")
        except ModuleNotFoundError:
            continue
        if hasattr(module, name):
            found: dict[str, Any] = getattr(module, name)
            return found
    raise LookupError(f"tempest has no {noun}.{name}")


def judge(reply: Any, noun: str, name: str, version: str) -> None:
    """Raise unless status and body are what tempest expects."""
    expected = schema(noun, name, version)
    assert reply.status_code in expected["status_code"], reply.text
    validator = rest_client.JSONSCHEMA_VALIDATOR
    jsonschema.validate(
        reply.json,
        expected["response_body"],
        cls=validator,
        format_checker=rest_client.FORMAT_CHECKER,
    )


@pytest.fixture
def busy(cloud: Cloud) -> InstanceRecord:
    """A cloud with a running, a crashed and a shut-off instance; the first is being snapshotted."""
    first = agent_says.instance()
    states = (PowerState.CRASHED, PowerState.SHUTDOWN)
    others = [agent_says.instance(power_state=state, image_ref=None) for state in states]
    cloud.announce(first, *others)
    cloud.snapshot(first.uuid)
    cloud.report("job_progress", agent_says.progress(cloud.casts.next()["job_id"]))
    return first


@pytest.mark.parametrize("token", TOKENS)
def test_servers_have_novas_shape_in_every_version(
    cloud: Cloud, busy: InstanceRecord, token: str
) -> None:
    every = "&all_tenants=1" if token.startswith("admin") else ""
    for version in VERSIONS:
        show = cloud.get(f"/v2.1/servers/{busy.uuid}", token, version)
        judge(show, "servers", "get_server", version)
        listed = cloud.get(f"/v2.1/servers?limit=2{every}", token, version)
        judge(listed, "servers", "list_servers", version)
        assert listed.json["servers_links"]
        detail = cloud.get(f"/v2.1/servers/detail?limit=9{every}", token, version)
        judge(detail, "servers", "list_servers_detail", version)
        assert len(detail.json["servers"]) == 3


def test_what_is_gone_has_novas_shape_in_every_version(cloud: Cloud, busy: InstanceRecord) -> None:
    cloud.announce()
    for version in VERSIONS:
        url = "/v2.1/servers/detail?changes-since=2000-01-01T00:00:00Z&sort_key=vm_state"
        gone = cloud.get(url, "demo:p-demo", version)
        judge(gone, "servers", "list_servers_detail", version)
        assert {server["status"] for server in gone.json["servers"]} == {"DELETED"}


def test_flavors_have_novas_shape_in_every_version(cloud: Cloud, busy: InstanceRecord) -> None:
    for version in VERSIONS:
        listed = cloud.get("/v2.1/flavors?limit=1", version=version)
        judge(listed, "flavors", "list_flavors", version)
        detail = cloud.get("/v2.1/flavors/detail", version=version)
        judge(detail, "flavors", "list_flavors_details", version)
        flavor_id = detail.json["flavors"][0]["id"]
        show = cloud.get(f"/v2.1/flavors/{flavor_id}", version=version)
        judge(show, "flavors", "create_update_get_flavor_details", version)
        specs = cloud.get(f"/v2.1/flavors/{flavor_id}/os-extra_specs", version=version)
        judge(specs, "flavors_extra_specs", "set_get_flavor_extra_specs", version)


def test_a_hypervisor_has_novas_shape_in_every_version(cloud: Cloud, busy: InstanceRecord) -> None:
    for version in VERSIONS[:87]:
        (listed,) = cloud.get("/v2.1/os-hypervisors", "admin:ops", version).json["hypervisors"]
        url = f"/v2.1/os-hypervisors/{listed['id']}"
        judge(cloud.get(url, "admin:ops", version), "hypervisors", "get_hypervisor", version)
        uptime = cloud.get(f"{url}/uptime", "admin:ops", version)
        judge(uptime, "hypervisors", "get_hypervisor_uptime", version)


def test_services_have_novas_shape_in_every_version(cloud: Cloud, busy: InstanceRecord) -> None:
    for version in VERSIONS:
        reply = cloud.get("/v2.1/os-services", "admin:ops", version)
        judge(reply, "services", "list_services", version)


def test_the_versions_documents_have_novas_shape(cloud: Cloud) -> None:
    judge(cloud.http.simulate_get("/"), "versions", "list_versions", "2.1")
    for path in ("/v2.1/", "/v2/"):
        judge(cloud.http.simulate_get(path), "versions", "get_one_version", "2.1")


#: URL, tempest's noun and name, who asks, and the version from which tempest has no word on it.
READS = [
    *(
        (f"/os-hypervisors{path}", "hypervisors", name, "admin:ops", 88)
        for path, name in (
            ("", "list_search_hypervisors"),
            ("?limit=1&with_servers=1", "list_search_hypervisors"),
            ("/detail", "list_hypervisors_detail"),
            ("/detail?limit=1&with_servers=1", "list_hypervisors_detail"),
            ("/statistics", "get_hypervisor_statistics"),
        )
    ),
    ("/os-hypervisors/compute/search", "hypervisors", "list_search_hypervisors", "admin:ops", 53),
    ("/os-hypervisors/compute/servers", "hypervisors", "get_hypervisors_servers", "admin:ops", 53),
    ("/os-availability-zone", "availability_zone", "list_availability_zone_list", None, 999),
    (
        "/os-availability-zone/detail",
        "availability_zone",
        "list_availability_zone_list_detail",
        "admin:ops",
        999,
    ),
    ("/os-aggregates", "aggregates", "list_aggregates", "admin:ops", 999),
    ("/limits", "limits", "get_limit", None, 999),
    ("/extensions", "extensions", "list_extensions", None, 999),
    ("/servers/{uuid}/os-instance-actions", "servers", "list_instance_actions", None, 999),
    (
        "/servers/{uuid}/os-instance-actions/{request_id}",
        "servers",
        "show_instance_action",
        "admin:ops",
        999,
    ),
    ("/servers/{uuid}/metadata", "servers", "list_server_metadata", None, 999),
    ("/servers/{uuid}/metadata/a", "servers", "set_show_server_metadata_item", None, 999),
]


@pytest.mark.parametrize(("url", "noun", "name", "token", "until"), READS)
def test_what_else_is_read_has_novas_shape_in_every_version(
    cloud: Cloud, busy: InstanceRecord, url: str, noun: str, name: str, token: str, until: int
) -> None:
    jobs = cloud.ledger.jobs(JobQuery(instance_uuid=busy.uuid))
    url = url.format(uuid=busy.uuid, request_id=jobs[0].context["request_id"])
    Overrides(cloud.database).change_metadata(busy.uuid, lambda _: {"a": "1"})
    for version in VERSIONS:
        if int(version.partition(".")[2]) < until:
            reply = cloud.get(f"/v2.1{url}", token or "demo:p-demo", version)
            judge(reply, noun, name, version)


def test_an_update_answers_with_novas_shape_in_every_version(
    cloud: Cloud, busy: InstanceRecord
) -> None:
    for version in VERSIONS:
        reply = cloud.http.simulate_put(
            f"/v2.1/servers/{busy.uuid}",
            json={"server": {"name": "other"}},
            headers=headers("demo:p-demo", version),
        )
        judge(reply, "servers", "update_server", version)


def test_images_have_novas_shape_until_they_went(cloud: Cloud, busy: InstanceRecord) -> None:
    (image_id,) = cloud.images.records
    for version in VERSIONS:
        replies = {
            "list_images": cloud.get("/v2.1/images?limit=1", version=version),
            "list_images_details": cloud.get("/v2.1/images/detail", version=version),
            "get_image": cloud.get(f"/v2.1/images/{image_id}", version=version),
        }
        for name, reply in replies.items():
            if int(version.partition(".")[2]) <= 35:
                judge(reply, "images", name, version)
            else:
                assert reply.status_code == 404
                assert "itemNotFound" in reply.json


def test_writes_of_metadata_have_novas_shape_in_every_version(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    url, many, one = (
        f"/v2.1/servers/{instance.uuid}/metadata",
        {"metadata": {"a": "1", "b": "2"}},
        {"meta": {"a": "3"}},
    )
    for version in VERSIONS:
        for method, path, body, name in (
            ("PUT", "", many, "set_server_metadata"),
            ("POST", "", many, "update_server_metadata"),
            ("PUT", "/a", one, "set_show_server_metadata_item"),
        ):
            reply = cloud.http.simulate_request(
                method, url + path, json=body, headers=headers("demo:p-demo", version)
            )
            judge(reply, "servers", name, version)
        deleted = cloud.http.simulate_delete(f"{url}/a", headers=headers("demo:p-demo", version))
        expected = schema("servers", "delete_server_metadata_item", version)
        assert (deleted.status_code in expected["status_code"], deleted.content) == (True, b"")


def test_actions_answer_as_novas_in_every_version(cloud: Cloud, instance: InstanceRecord) -> None:
    for version in VERSIONS:
        for body in ({"lock": None}, {"unlock": None}):
            reply = cloud.act(instance.uuid, body, version=version)
            expected = schema("servers", "server_actions_common_schema", version)
            assert reply.status_code in expected["status_code"]
        made = cloud.act(instance.uuid, {"createImage": {"name": "s"}}, version=version)
        cast = cloud.casts.next()
        expected = schema("images", "create_image", version)
        assert made.status_code in expected["status_code"]
        if "response_body" in expected:
            judge(made, "images", "create_image", version)
        else:
            assert made.headers["location"].endswith(f"/images/{cast['image_id']}")
        ids = cast["job_id"], instance.uuid, cast["image_id"]
        cloud.report("job_finished", agent_says.finished(*ids))
