# SPDX-License-Identifier: Apache-2.0
"""What stock clients ask besides servers: hosts, limits, metadata, what was done to a server."""

from __future__ import annotations

from typing import Any

import pytest

from common.reports import InstanceRecord
from common.states import JobKind, PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, headers
from tests.api.test_create_image import message_of

ADMIN, DEMO, OTHER = "admin:ops", "demo:p-demo", "eve:p-other"


def send(cloud: Cloud, method: str, url: str, body: Any = None, who: str = DEMO) -> Any:
    return cloud.http.simulate_request(
        method, f"/v2.1{url}", json=body, headers=headers(who, "2.96")
    )


def done(cloud: Cloud, cast: dict[str, Any]) -> None:
    """Let the agent say that the snapshot is made."""
    ids = cast["job_id"], cast["instance"]["uuid"], cast["image_id"]
    cloud.report("job_finished", agent_says.finished(*ids))


def test_hypervisors_are_found_by_pattern_and_id(cloud: Cloud, instance: InstanceRecord) -> None:
    (listed,) = cloud.get("/v2.1/os-hypervisors", ADMIN, "2.53").json["hypervisors"]
    one = cloud.get(f"/v2.1/os-hypervisors/{listed['id']}", ADMIN, "2.53").json["hypervisor"]
    assert (one["running_vms"], one["memory_mb"], one["state"]) == (1, 16_384, "up")
    size = instance.flavor
    assert (one["vcpus_used"], one["memory_mb_used"]) == (size.vcpus, size.memory_mib)
    assert one["host_ip"] == "192.0.2.7"
    pattern = "/v2.1/os-hypervisors?hypervisor_hostname_pattern="
    assert cloud.get(pattern + "COMPUTE", ADMIN).json["hypervisors"]
    assert cloud.get(pattern + "nowhere", ADMIN, "2.52").json["hypervisors"]
    assert cloud.get(pattern + "compute&limit=1", ADMIN).status_code == 400
    assert cloud.get(pattern + "nowhere", ADMIN).status_code == 404
    assert cloud.get("/v2.1/os-hypervisors/web", ADMIN, "2.53").status_code == 400
    assert cloud.get("/v2.1/os-hypervisors/7", ADMIN, "2.52").status_code == 404
    number = cloud.get("/v2.1/os-hypervisors", ADMIN, "2.52").json["hypervisors"][0]["id"]
    assert isinstance(number, int)
    assert cloud.get(f"/v2.1/os-hypervisors/{number}", ADMIN, "2.52").status_code == 200
    newest = cloud.get(f"/v2.1/os-hypervisors/{listed['id']}", ADMIN, "2.88").json["hypervisor"]
    assert set(newest) == {
        *("id", "hypervisor_hostname", "state", "status", "host_ip", "uptime", "service"),
        *("hypervisor_type", "hypervisor_version"),
    }


def test_what_runs_on_a_hypervisor_is_told_when_asked(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.announce(host="compute-2")
    servers = [{"uuid": instance.uuid, "name": "web"}]
    for path in ("", "/detail"):
        url = f"/v2.1/os-hypervisors{path}?with_servers=True"
        first, second = cloud.get(url, ADMIN).json["hypervisors"]
        assert (first["servers"], second["servers"]) == (servers, [])
        assert "servers" not in cloud.get(url, ADMIN, "2.74").json["hypervisors"][1]
        assert "servers" not in cloud.get(url, ADMIN, "2.52").json["hypervisors"][0]
    shown = f"/v2.1/os-hypervisors/{first['id']}"
    assert cloud.get(f"{shown}?with_servers=1", ADMIN).json["hypervisor"]["servers"] == servers
    assert "servers" not in cloud.get(shown, ADMIN).json["hypervisor"]
    assert cloud.get(f"{shown}?colour=red", ADMIN).status_code == 400
    old = cloud.get("/v2.1/os-hypervisors/compute/servers", ADMIN, "2.52").json["hypervisors"]
    assert (old[0]["servers"], "servers" in old[1]) == (servers, False)


def test_lists_of_hypervisors_have_pages_since_2_33(cloud: Cloud, instance: InstanceRecord) -> None:
    cloud.announce(host="compute-2")
    for version in ("2.33", "2.53"):
        first = cloud.get("/v2.1/os-hypervisors?limit=1", ADMIN, version).json
        (link,) = first["hypervisors_links"]
        url = link["href"].removeprefix("http://falconframework.org")
        second = cloud.get(url, ADMIN, version).json
        assert [one["hypervisor_hostname"] for one in second["hypervisors"]] == ["compute-2"]
        assert "hypervisors_links" not in second
        message_of(cloud.get("/v2.1/os-hypervisors?marker=x", ADMIN, version), 400)
    assert len(cloud.get("/v2.1/os-hypervisors?limit=1", ADMIN, "2.32").json["hypervisors"]) == 2


def test_what_later_versions_have_not_is_404_there(cloud: Cloud, instance: InstanceRecord) -> None:
    number = cloud.get("/v2.1/os-hypervisors", ADMIN, "2.1").json["hypervisors"][0]["id"]
    for path, last in (
        ("statistics", "2.87"),
        (f"{number}/uptime", "2.52"),
        ("compute/search", "2.52"),
        ("compute/servers", "2.52"),
    ):
        url = f"/v2.1/os-hypervisors/{path}"
        assert cloud.get(url, ADMIN, last).status_code == 200
        assert cloud.get(url, DEMO, last).status_code == 403
        message_of(cloud.get(url, ADMIN, "2.88"), 404)
    for path in ("nowhere/search", "nowhere/servers", "7/uptime"):
        message_of(cloud.get(f"/v2.1/os-hypervisors/{path}", ADMIN, "2.1"), 404)
    statistics = cloud.get("/v2.1/os-hypervisors/statistics", ADMIN, "2.1").json
    found = statistics["hypervisor_statistics"]
    assert (found["count"], found["vcpus"], found["memory_mb_used"]) == (1, 8, 512)


@pytest.mark.parametrize(
    "url",
    [
        "/v2.1/os-hypervisors",
        "/v2.1/os-hypervisors/detail",
        "/v2.1/os-availability-zone/detail",
        "/v2.1/os-aggregates",
        "/v1/hosts",
    ],
)
def test_hosts_are_the_operators_business(cloud: Cloud, instance: InstanceRecord, url: str) -> None:
    assert cloud.get(url).status_code == 403
    assert cloud.get(url, ADMIN).status_code == 200


def test_the_fleet_is_seen_as_it_is(cloud: Cloud, instance: InstanceRecord) -> None:
    cloud.announce(instance, open_jobs=("a-job",))
    (host,) = cloud.get("/v1/hosts", ADMIN).json["hosts"]
    assert (host["state"], host["instances"], host["open_jobs"]) == ("up", 1, ["a-job"])
    assert host["release"] == "0.1.0"


def test_a_new_name_stays_and_is_found(cloud: Cloud, instance: InstanceRecord) -> None:
    body = {"server": {"name": "renamed", "description": "the first"}}
    shown = send(cloud, "PUT", f"/servers/{instance.uuid}", body).json["server"]
    assert (shown["name"], shown["description"]) == ("renamed", "the first")
    cloud.announce(instance)
    server = cloud.server(instance.uuid)
    assert (server["name"], server["description"]) == ("renamed", "the first")
    assert cloud.get("/v2.1/servers?name=^renamed$").json["servers"]
    assert not cloud.get("/v2.1/servers?name=^web$").json["servers"]
    nothing = {"server": {"description": None}}
    assert send(cloud, "PUT", f"/servers/{instance.uuid}", nothing).json["server"]["name"] == (
        "renamed"
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"server": {"name": ""}},
        {"server": {"name": " web"}},
        {"server": {"flavor": "m1.huge"}},
        {"server": {"description": "a" * 256}},
    ],
)
def test_what_cannot_be_changed_is_400(
    cloud: Cloud, instance: InstanceRecord, body: dict[str, Any]
) -> None:
    message_of(send(cloud, "PUT", f"/servers/{instance.uuid}", body), 400)


def test_what_is_said_of_the_guest_is_kept_and_shown(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    said = {
        "accessIPv4": "192.0.2.7",
        "accessIPv6": "2001:db8::7",
        "OS-DCF:diskConfig": "AUTO",
        "hostname": "web.example.org",
    }
    send(cloud, "PUT", f"/servers/{instance.uuid}", {"server": said})
    cloud.announce(instance)
    server = cloud.server(instance.uuid)
    assert server["OS-EXT-SRV-ATTR:hostname"] == said.pop("hostname")
    assert {name: server[name] for name in said} == said
    cleared = {"server": {"accessIPv4": None}}
    assert send(cloud, "PUT", f"/servers/{instance.uuid}", cleared).json["server"][
        "accessIPv4"
    ] == ("")


def test_a_change_of_nothing_shows_the_server(cloud: Cloud, instance: InstanceRecord) -> None:
    """As in Nova: tempest asks so for the body of the answer."""
    answer = send(cloud, "PUT", f"/servers/{instance.uuid}", {"server": {}})
    assert answer.status_code == 200
    assert answer.json["server"]["id"] == instance.uuid


def test_an_ipv6_address_is_kept_in_its_shortest_form(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    said = {"server": {"accessIPv6": "0000:0000:0000:0000:0000:babe:220.12.22.2"}}
    send(cloud, "PUT", f"/servers/{instance.uuid}", said)
    assert cloud.server(instance.uuid)["accessIPv6"] == "::babe:dc0c:1602"


def test_a_host_name_is_made_of_the_name(cloud: Cloud) -> None:
    record = agent_says.instance(name=" My web_Server/1.")
    cloud.announce(record)
    assert cloud.server(record.uuid)["OS-EXT-SRV-ATTR:hostname"] == "my-web-server1"


@pytest.mark.parametrize(
    ("field", "value", "version", "status"),
    [
        ("accessIPv4", "300.1.1.1", "2.1", 400),
        ("accessIPv4", "::1", "2.1", 400),
        ("accessIPv6", "192.0.2.7", "2.1", 400),
        ("accessIPv6", "2001:db8::7", "2.1", 200),
        ("OS-DCF:diskConfig", "SOMEHOW", "2.1", 400),
        ("hostname", "web", "2.89", 400),
        ("hostname", "web", "2.90", 200),
        ("hostname", "web.example.org", "2.93", 400),
        ("hostname", "web.example.org", "2.94", 200),
        ("hostname", "-web", "2.94", 400),
        ("hostname", "web\n", "2.94", 400),
    ],
)
def test_what_is_said_of_the_guest_must_make_sense(
    cloud: Cloud, instance: InstanceRecord, field: str, value: str, version: str, status: int
) -> None:
    url, body = f"/v2.1/servers/{instance.uuid}", {"server": {field: value}}
    reply = cloud.http.simulate_put(url, json=body, headers=headers(DEMO, version))
    assert reply.status_code == status


def test_the_properties_of_a_servers_image_are_shown_since_2_98(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    url = f"/v2.1/servers/{instance.uuid}"
    assert "properties" not in cloud.get(url, version="2.97").json["server"]["image"]
    image = cloud.get(url, version="2.98").json["server"]["image"]
    assert image["properties"] == {"hw_disk_bus": "virtio", "os_type": "linux"}


def test_before_2_19_there_is_no_description(cloud: Cloud, instance: InstanceRecord) -> None:
    url, body = f"/v2.1/servers/{instance.uuid}", {"server": {"description": "x"}}
    reply = cloud.http.simulate_put(url, json=body, headers=headers(DEMO, "2.18"))
    assert reply.status_code == 400


def test_metadata_is_added_replaced_read_and_removed(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    url = f"/servers/{instance.uuid}/metadata"
    assert send(cloud, "GET", url).json == {"metadata": {}}
    added = send(cloud, "POST", url, {"metadata": {"a": "1", "b": "2"}})
    assert (added.status_code, added.json) == (200, {"metadata": {"a": "1", "b": "2"}})
    assert send(cloud, "POST", url, {"metadata": {"b": "3"}}).json["metadata"]["a"] == "1"
    assert send(cloud, "PUT", f"{url}/c", {"meta": {"c": "4"}}).json == {"meta": {"c": "4"}}
    assert send(cloud, "GET", f"{url}/b").json == {"meta": {"b": "3"}}
    assert send(cloud, "DELETE", f"{url}/b").status_code == 204
    message_of(send(cloud, "GET", f"{url}/b"), 404)
    message_of(send(cloud, "DELETE", f"{url}/b"), 404)
    cloud.announce(instance)
    assert cloud.server(instance.uuid)["metadata"] == {"a": "1", "c": "4"}
    assert send(cloud, "PUT", url, {"metadata": {}}).json == {"metadata": {}}


def test_metadata_that_makes_no_sense_is_refused(cloud: Cloud, instance: InstanceRecord) -> None:
    url = f"/servers/{instance.uuid}/metadata"
    for body in ({"metadata": {"a": 1}}, {"metadata": {"ä": "1"}}, {"meta": {}}, {}):
        message_of(send(cloud, "POST", url, body), 400)
    message_of(send(cloud, "PUT", f"{url}/a", {"meta": {"b": "1"}}), 400)
    many = {"metadata": {f"k{n}": "v" for n in range(129)}}
    assert send(cloud, "POST", url, many).status_code == 403
    assert send(cloud, "GET", url).json == {"metadata": {}}
    message_of(send(cloud, "GET", url, who=OTHER), 404)


def test_metadata_of_a_locked_or_busy_instance_stays(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    url = f"/servers/{instance.uuid}/metadata"
    cloud.snapshot(instance.uuid)
    message_of(send(cloud, "POST", url, {"metadata": {"a": "1"}}), 409)
    cast = cloud.casts.next()
    cloud.report(
        "job_finished", agent_says.finished(cast["job_id"], instance.uuid, cast["image_id"])
    )
    cloud.act(instance.uuid, {"lock": None})
    message_of(send(cloud, "POST", url, {"metadata": {"a": "1"}}), 409)
    assert send(cloud, "POST", url, {"metadata": {"a": "1"}}, ADMIN).status_code == 200


def test_metadata_of_a_broken_instance_stays(cloud: Cloud) -> None:
    record = agent_says.instance(power_state=PowerState.CRASHED)
    cloud.announce(record)
    url = f"/servers/{record.uuid}/metadata"
    message_of(send(cloud, "POST", url, {"metadata": {"a": "1"}}), 409)


def test_what_was_done_is_found_by_the_id_of_its_request(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    reply = cloud.snapshot(instance.uuid)
    cast = cloud.casts.next()
    url = f"/servers/{instance.uuid}/os-instance-actions"
    running = send(cloud, "GET", f"{url}/{reply.headers['x-compute-request-id']}").json
    assert running["instanceAction"]["events"][0]["finish_time"] is None
    cloud.report(
        "job_finished", agent_says.finished(cast["job_id"], instance.uuid, cast["image_id"])
    )
    cloud.act(instance.uuid, {"os-stop": None})
    stop = cloud.casts.next()
    failed = {"kind": JobKind.STOP, "state": "error", "reason": "no", "capture": None}
    cloud.report("job_finished", agent_says.finished(stop["job_id"], instance.uuid, "", **failed))

    newest, oldest = send(cloud, "GET", url).json["instanceActions"]
    assert (newest["action"], newest["message"]) == ("stop", "Error")
    assert (oldest["action"], oldest["message"]) == ("createImage", None)
    assert oldest["request_id"] == reply.headers["x-compute-request-id"]
    shown = send(cloud, "GET", f"{url}/{oldest['request_id']}").json["instanceAction"]
    names = [event["event"] for event in shown["events"]]
    assert names == ["compute_snapshot_instance", "compute_snapshot_capture"]
    assert {event["result"] for event in shown["events"]} == {"Success"}
    assert "traceback" not in shown["events"][0]
    message_of(send(cloud, "GET", f"{url}/req-none"), 404)
    message_of(send(cloud, "GET", url, who=OTHER), 404)


def test_limits_count_what_the_project_has(cloud: Cloud, instance: InstanceRecord) -> None:
    limits = cloud.get("/v2.1/limits").json["limits"]["absolute"]
    assert limits["totalInstancesUsed"] == 1
    assert cloud.get("/v2.1/limits", OTHER).json["limits"]["absolute"]["totalInstancesUsed"] == 0
    assert "maxImageMeta" not in limits
    old = cloud.get("/v2.1/limits", version="2.38").json["limits"]["absolute"]
    assert old["maxImageMeta"] == 128


def test_another_projects_limits_are_the_administrators(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    url = "/v2.1/limits?reserved=1&tenant_id=p-demo"
    shown = cloud.get(url, ADMIN).json["limits"]["absolute"]
    assert (shown["totalInstancesUsed"], shown["totalRAMUsed"]) == (1, 512)
    assert cloud.get(url).status_code == 200
    assert cloud.get(url, OTHER).status_code == 403


def test_services_are_found_by_host_and_binary(cloud: Cloud, instance: InstanceRecord) -> None:
    for query, number in (
        ("", 1),
        ("?host=compute-1&binary=nova-compute", 1),
        ("?host=nowhere", 0),
        ("?binary=nova-conductor", 0),
    ):
        listed = cloud.get(f"/v2.1/os-services{query}", ADMIN).json["services"]
        assert len(listed) == number
    assert cloud.get("/v2.1/os-services?colour=red", ADMIN).status_code == 400
    assert cloud.get("/v2.1/os-services?colour=red", ADMIN, "2.74").status_code == 200


def test_extensions_and_aggregates_that_are_not_there_are_404(cloud: Cloud) -> None:
    aliases = [one["alias"] for one in cloud.get("/v2.1/extensions").json["extensions"]]
    assert cloud.get(f"/v2.1/extensions/{aliases[0]}").status_code == 200
    assert cloud.get("/v2.1/extensions/os-nothing").status_code == 404
    assert cloud.get("/v2.1/os-aggregates/1", ADMIN).status_code == 404
