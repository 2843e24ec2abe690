# SPDX-License-Identifier: Apache-2.0
"""`POST /servers` and `DELETE /servers/{id}`: what is recorded, cast, refused and left."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from common.reports import Flavor
from common.states import JobKind, JobState, PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.memory_images import MemoryImages
from tests.api.new_servers import (
    ADMIN,
    DEMO,
    SMALL,
    accept,
    delete,
    finish,
    made,
    message_of,
    post,
    states,
    wish,
)
from tests.api.test_response_schemas import VERSIONS, judge


def test_the_agent_is_told_all_that_it_needs(cloud: Cloud, image: str) -> None:
    server_id = made(cloud, image, networks=[{"uuid": "lan"}])
    cast = cloud.casts.next()
    assert cast["method"] == "create_instance"
    assert cast["host"] == agent_says.HOST
    assert cast["instance"] == {
        "uuid": server_id,
        "project_id": "p-demo",
        "user_id": "demo",
        "name": "new",
    }
    assert cast["flavor"]["memory_mib"] == 1024
    assert (cast["image_id"], cast["networks"]) == (image, ["lan"])
    assert cast["image_properties"] == {"hw_disk_bus": "virtio"}


def test_the_answer_has_novas_shape_in_every_version(cloud: Cloud, image: str) -> None:
    # Tempest takes no adminPass then: it has one for clouds without.
    for version in VERSIONS:
        networks = "none" if float(version.partition(".")[2]) >= 37 else None
        reply = post(cloud, wish(image, networks=networks), version=version)
        judge(reply, "servers", "create_server", version)
        server = reply.json["server"]
        assert reply.headers["location"] == server["links"][0]["href"]
        shown = cloud.get(f"/v2.1/servers/{server['id']}", DEMO, version)
        judge(shown, "servers", "get_server", version)
        gone = delete(cloud, server["id"])
        assert (gone.status_code, gone.text) == (204, "")


def test_from_the_202_on_it_exists_and_is_being_built(cloud: Cloud, image: str) -> None:
    fields = {"metadata": {"a": "b"}, "description": "mine", "accessIPv4": "192.0.2.1"}
    server_id = made(cloud, image, **fields)
    server = cloud.get(f"/v2.1/servers/{server_id}").json["server"]
    assert {name: server[name] for name in fields} == fields
    assert states(cloud, server_id) == ("BUILD", "scheduling")
    assert (server["image"]["id"], server["flavor"]["original_name"]) == (image, "small")
    assert server["OS-SRV-USG:launched_at"] is None
    assert server["OS-EXT-STS:power_state"] == 0


def test_a_host_that_has_not_got_it_yet_does_not_end_it(cloud: Cloud, image: str) -> None:
    server_id = made(cloud, image)
    cloud.announce()
    cast = accept(cloud, JobKind.CREATE)
    cloud.announce()
    assert states(cloud, server_id)[0] == "BUILD"
    record = agent_says.instance(uuid=server_id, flavor=SMALL)
    cloud.announce(record)
    assert states(cloud, server_id)[0] == "BUILD", "it runs, but its job has not ended"
    finish(cloud, cast, JobKind.CREATE, power_state=PowerState.RUNNING)
    assert states(cloud, server_id) == ("ACTIVE", None)
    assert cloud.server(server_id)["OS-SRV-USG:launched_at"]
    # From now on it is an instance as others are.
    cloud.announce()
    assert cloud.get(f"/v2.1/servers/{server_id}").status_code == 404


def test_what_cannot_be_made_is_in_error_and_says_why(cloud: Cloud, image: str) -> None:
    server_id = made(cloud, image)
    cast = accept(cloud, JobKind.CREATE)
    outcome = {"state": JobState.ERROR, "reason": "no room for it", "reason_code": "no_room"}
    finish(cloud, cast, JobKind.CREATE, **outcome)
    cloud.announce()
    server = cloud.get(f"/v2.1/servers/{server_id}").json["server"]
    assert (server["status"], server["fault"]["message"]) == ("ERROR", "no room for it")
    assert cloud.server(server_id)["OS-EXT-SRV-ATTR:host"] is None
    judge(cloud.get(f"/v2.1/servers/{server_id}"), "servers", "get_server", "2.96")
    assert image in cloud.images.records, "the image is nobody's to remove"
    assert cloud.ledger.to_discard() == []
    (action,) = cloud.get(f"/v2.1/servers/{server_id}/os-instance-actions").json["instanceActions"]
    assert (action["action"], action["message"]) == ("create", "Error")
    # Nobody needs to be asked for its end.
    assert delete(cloud, server_id).status_code == 204
    assert cloud.get(f"/v2.1/servers/{server_id}").status_code == 404
    assert cloud.casts.empty()


@pytest.mark.parametrize(
    "flavor",
    [
        Flavor(name="small", vcpus=1, memory_mib=1 << 20, disk_gib=1),
        Flavor(name="small", vcpus=1000, memory_mib=64, disk_gib=1),
    ],
    ids=["memory", "processors"],
)
def test_without_room_anywhere_it_is_in_error_at_once(
    cloud: Cloud, image: str, flavor: Flavor
) -> None:
    cloud.flavors["small"] = flavor
    server_id = made(cloud, image)
    server = cloud.server(server_id)
    assert (server["status"], server["OS-EXT-STS:task_state"]) == ("ERROR", None)
    assert server["fault"]["message"].startswith("No valid host was found.")
    assert server["hostId"] == ""
    assert cloud.casts.empty()
    assert delete(cloud, server_id).status_code == 204


def test_one_that_never_was_is_not_rebuilt(cloud: Cloud, image: str) -> None:
    cloud.flavors["small"] = Flavor(name="small", vcpus=1000, memory_mib=64, disk_gib=1)
    server_id = made(cloud, image)
    reply = cloud.act(server_id, {"rebuild": {"imageRef": image}})
    assert (reply.status_code, message_of(reply)) == (
        409,
        "Cannot 'rebuild' an instance which has never been active",
    )
    assert cloud.task_state(server_id) is None


def test_a_host_fills_up_and_another_is_chosen(cloud: Cloud, image: str) -> None:
    cloud.flavors["small"] = Flavor(name="small", vcpus=1, memory_mib=9000, disk_gib=1)
    cloud.announce(host="compute-2")
    hosts = []
    for _ in range(3):
        server_id = made(cloud, image)
        hosts.append(cloud.server(server_id)["OS-EXT-SRV-ATTR:host"])
    assert sorted(hosts[:2]) == ["compute-1", "compute-2"]
    assert hosts[2] is None


def test_an_administrator_may_name_the_host(cloud: Cloud, image: str) -> None:
    cloud.announce(host="compute-2")
    for more in ({"availability_zone": "nova:compute-2"}, {"host": "compute-2"}):
        reply = post(cloud, wish(image, **more), ADMIN)
        assert reply.status_code == 202, reply.text
        server = cloud.server(reply.json["server"]["id"])
        assert server["OS-EXT-SRV-ATTR:host"] == "compute-2"
        assert post(cloud, wish(image, **more)).status_code == 403
    unknown = post(cloud, wish(image, host="nowhere"), ADMIN)
    assert (unknown.status_code, message_of(unknown)) == (
        400,
        "Compute host nowhere could not be found.",
    )
    forced = post(cloud, wish(image, availability_zone="nova:nowhere"), ADMIN)
    assert cloud.server(forced.json["server"]["id"])["status"] == "ERROR"


def test_an_agent_of_an_older_version_gets_none(cloud: Cloud, image: str) -> None:
    report = agent_says.heartbeat() | {"rpc_version": "1.3"}
    cloud.report("host_report", report)
    assert cloud.server(made(cloud, image))["status"] == "ERROR"


#: No image, and no port.
NOBODYS = "8f2f6c1c-6f0b-4b7e-9d53-5d1a2b3c4d5e"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "name"),
    ({"flavorRef": "huge"}, "Invalid flavorRef provided."),
    ({"imageRef": ""}, "Missing imageRef attribute"),
    ({"imageRef": NOBODYS}, "Cannot find image"),
    ({"imageRef": "cirros"}, "imageRef"),
    ({"networks": None}, "networks"),
    ({"networks": [{"port": NOBODYS}]}, "no ports"),
    ({"networks": [{}]}, "networks"),
    ({"availability_zone": "mars"}, "The requested availability zone is not available"),
    ({"security_groups": [{"name": "web"}]}, "Security group web not found"),
    ({"key_name": "mine"}, "key_name"),
    ({"config_drive": True}, "config_drive"),
    ({"user_data": "IyE="}, "user_data"),
    ({"tags": ["a"]}, "tags"),
    ({"block_device_mapping_v2": [{"source_type": "volume", "boot_index": 0}]}, "one disk"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"color": "red"}, "color"),
]


@pytest.mark.parametrize(("more", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_had_is_refused_in_words(
    cloud: Cloud, image: str, more: dict[str, Any], words: str
) -> None:
    reply = post(cloud, wish(image, **more))
    assert reply.status_code == 400, reply.text
    assert words in message_of(reply)
    assert cloud.casts.empty()
    assert cloud.get("/v2.1/servers").json["servers"] == []


def test_what_stock_clients_say_beside_is_taken(cloud: Cloud, image: str) -> None:
    root = {"uuid": image, "boot_index": 0, "source_type": "image", "destination_type": "local"}
    said = {
        "block_device_mapping_v2": [root | {"delete_on_termination": True}],
        "min_count": 1,
        "max_count": 1,
        "networks": "auto",
        "security_groups": [{"name": "default"}],
        "adminPass": "secret",
        "OS-DCF:diskConfig": "AUTO",
    }
    reply = post(cloud, wish(image, **said))
    assert reply.status_code == 202, reply.text
    assert reply.json["server"]["OS-DCF:diskConfig"] == "AUTO"
    assert "secret" not in reply.text
    assert cloud.casts.next()["networks"] == []


def test_hints_are_refused_unless_they_are_empty(cloud: Cloud, image: str) -> None:
    assert post(cloud, wish(image) | {"os:scheduler_hints": {}}).status_code == 202
    reply = post(cloud, wish(image) | {"os:scheduler_hints": {"group": str(uuid.uuid4())}})
    assert (reply.status_code, "scheduler_hints" in message_of(reply)) == (400, True)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"status": "queued"}, "is not active."),
        ({"min_ram": 2048}, "memory is too small"),
        ({"min_disk": 3}, "smaller than the minimum size"),
        ({"size": 3 << 30}, "disk is too small"),
        ({"owner": "p-other"}, "Cannot find image"),
        ({"architecture": "pdp11"}, "not recognised"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_image_that_does_not_do_is_refused(
    cloud: Cloud, images: MemoryImages, image: str, record: dict[str, Any], words: str
) -> None:
    images.records[image].update(record)
    reply = post(cloud, wish(image))
    assert (reply.status_code, words in message_of(reply)) == (400, True), reply.text


def test_another_projects_shared_image_does(cloud: Cloud, images: MemoryImages, image: str) -> None:
    images.records[image].update({"owner": "p-other", "visibility": "shared"})
    assert post(cloud, wish(image)).status_code == 400
    images.shared_with[image] = {"p-demo"}
    assert post(cloud, wish(image)).status_code == 202


def test_one_that_was_given_up_and_comes_after_all_is_there(cloud: Cloud, image: str) -> None:
    server_id = made(cloud, image)
    cast = accept(cloud, JobKind.CREATE)
    cloud.ledger.fail(cast["job_id"], "its agent is silent", "agent_unavailable")
    assert states(cloud, server_id) == ("ERROR", None)
    finish(cloud, cast, JobKind.CREATE, power_state=PowerState.RUNNING)
    assert states(cloud, server_id) == ("ACTIVE", None)
    assert cloud.server(server_id)["OS-EXT-SRV-ATTR:host"] == agent_says.HOST


def test_one_that_was_given_up_and_is_announced_is_there(cloud: Cloud, image: str) -> None:
    server_id = made(cloud, image)
    cast = accept(cloud, JobKind.CREATE)
    cloud.ledger.fail(cast["job_id"], "its agent is silent", "agent_unavailable")
    cloud.announce(agent_says.instance(uuid=server_id))
    assert states(cloud, server_id) == ("ACTIVE", None)
    assert delete(cloud, server_id).status_code == 204
    assert cloud.casts.next()["method"] == "delete_instance"


def test_the_sizes_are_shown_as_flavors(cloud: Cloud, image: str) -> None:
    reply = cloud.get("/v2.1/flavors/detail")
    (shown,) = reply.json["flavors"]
    assert (shown["id"], shown["ram"], shown["disk"]) == ("small", 1024, 2)
    # Of two with one name, the one that may be asked for.
    cloud.announce(
        agent_says.instance(flavor=Flavor(name="small", vcpus=9, memory_mib=9, disk_gib=9))
    )
    assert cloud.get("/v2.1/flavors/small").json["flavor"]["vcpus"] == 1
    assert len(cloud.get("/v2.1/flavors").json["flavors"]) == 1


def test_a_project_has_as_many_as_it_may(cloud: Cloud, image: str) -> None:
    object.__setattr__(cloud.services.lifecycle, "most_instances", 1)
    first = made(cloud, image)
    reply = post(cloud, wish(image))
    assert (reply.status_code, "Quota exceeded" in message_of(reply)) == (403, True)
    delete(cloud, first)
    assert post(cloud, wish(image)).status_code == 202
