# SPDX-License-Identifier: Apache-2.0
"""`POST /servers` and `DELETE /servers/{id}`: what is recorded, cast, refused and left."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest

from api_service.store.job_lists import JobQuery
from common.reports import Flavor, InstanceRecord
from common.states import JobKind, JobState, PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, headers
from tests.api.memory_images import MemoryImages
from tests.api.test_response_schemas import VERSIONS, judge

DEMO, ADMIN, OTHER = "demo:p-demo", "admin:ops", "eve:p-other"
SMALL = Flavor(name="small", vcpus=1, memory_mib=1024, disk_gib=2)


@pytest.fixture
def image(cloud: Cloud, images: MemoryImages) -> str:
    """An image of the project, on a cloud with one empty host and one size."""
    cloud.flavors["small"] = SMALL
    cloud.announce()
    return images.add(owner="p-demo", disk_format="qcow2", size=1 << 20, hw_disk_bus="virtio")


def message_of(reply: Any) -> str:
    """Return the sentence of a fault, whatever it is called."""
    (fault,) = reply.json.values()
    message: str = fault["message"]
    return message


def wish(image: str, **more: Any) -> dict[str, Any]:
    server = {"name": "new", "imageRef": image, "flavorRef": "small", "networks": "none"}
    return {"server": {name: value for name, value in (server | more).items() if value is not None}}


def post(cloud: Cloud, body: Any, who: str = DEMO, version: str = "2.96") -> Any:
    return cloud.http.simulate_post("/v2.1/servers", json=body, headers=headers(who, version))


def delete(cloud: Cloud, server_id: str, who: str = DEMO) -> Any:
    url = f"/v2.1/servers/{server_id}"
    return cloud.http.simulate_delete(url, headers=headers(who, "2.96"))


def made(cloud: Cloud, image: str, **more: Any) -> str:
    """Return the id of a server that was asked for."""
    reply = post(cloud, wish(image, **more))
    assert reply.status_code == 202, reply.text
    server_id: str = reply.json["server"]["id"]
    return server_id


def accept(cloud: Cloud, kind: JobKind) -> dict[str, Any]:
    """Take the next cast as an agent does; return it."""
    cast = cloud.casts.next()
    assert cast["method"] == f"{kind}_instance"
    report = agent_says.accepted(
        cast["job_id"], cast["instance"]["uuid"], cast.get("image_id", ""), kind=kind
    )
    cloud.report("job_accepted", report)
    return cast


def finish(cloud: Cloud, cast: dict[str, Any], kind: JobKind, **changes: Any) -> None:
    report = agent_says.finished(
        *(cast["job_id"], cast["instance"]["uuid"], cast.get("image_id", "")),
        **{"kind": kind, "size_bytes": None, "sha512": None, "capture": None} | changes,
    )
    cloud.report("job_finished", report)


def launched(cloud: Cloud, image: str, **more: Any) -> InstanceRecord:
    """Return a server that was asked for, made and announced."""
    server_id = made(cloud, image, **more)
    cast = accept(cloud, JobKind.CREATE)
    record = agent_says.instance(uuid=server_id, flavor=SMALL, image_ref=image, name="new")
    cloud.announce(record)
    finish(cloud, cast, JobKind.CREATE, power_state=PowerState.RUNNING)
    return record


def states(cloud: Cloud, server_id: str) -> tuple[str, str | None]:
    server = cloud.server(server_id)
    return server["status"], server["OS-EXT-STS:task_state"]


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


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": None}, "name"),
    ({"flavorRef": "huge"}, "Invalid flavorRef provided."),
    ({"imageRef": ""}, "Missing imageRef attribute"),
    ({"imageRef": str(uuid.uuid4())}, "Cannot find image"),
    ({"imageRef": "cirros"}, "imageRef"),
    ({"networks": None}, "networks"),
    ({"networks": [{"port": str(uuid.uuid4())}]}, "no ports"),
    ({"networks": [{}]}, "networks"),
    ({"min_count": 2}, "one server"),
    ({"max_count": 2}, "one server"),
    ({"max_count": "2"}, "one server"),
    ({"return_reservation_id": True}, "return_reservation_id"),
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


def test_a_launched_one_is_ended_by_its_agent(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    assert delete(cloud, record.uuid).status_code == 204
    assert states(cloud, record.uuid) == ("ACTIVE", "deleting")
    assert delete(cloud, record.uuid).status_code == 204, "asked again, it is on its way"
    cast = accept(cloud, JobKind.DELETE)
    finish(cloud, cast, JobKind.DELETE)
    assert cloud.get(f"/v2.1/servers/{record.uuid}").status_code == 404
    assert delete(cloud, record.uuid).status_code == 404
    assert cloud.casts.empty()
    # A report from before does not raise the dead.
    before = (dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)).timestamp()
    cloud.announce(record, at=before)
    assert cloud.get(f"/v2.1/servers/{record.uuid}").status_code == 404


def test_one_that_nobody_has_accepted_yet_is_gone_at_once(cloud: Cloud, image: str) -> None:
    server_id = made(cloud, image)
    create = cloud.casts.next()
    assert delete(cloud, server_id).status_code == 204
    assert cloud.get(f"/v2.1/servers/{server_id}").status_code == 404
    # The cast may yet arrive: its agent hears that it is not wanted.
    cancel = cloud.casts.next()
    assert (cancel["method"], cancel["job_id"]) == ("cancel_job", create["job_id"])
    assert cloud.casts.empty()


def test_one_that_is_being_built_is_cancelled_and_deleted(cloud: Cloud, image: str) -> None:
    server_id = made(cloud, image)
    create = accept(cloud, JobKind.CREATE)
    assert delete(cloud, server_id).status_code == 204
    assert states(cloud, server_id) == ("BUILD", "deleting")
    assert cloud.casts.next()["method"] == "cancel_job"
    cast = accept(cloud, JobKind.DELETE)
    cancelled = {"state": JobState.CANCELLED, "reason": "the job was cancelled"}
    finish(cloud, create, JobKind.CREATE, **cancelled)
    assert states(cloud, server_id) == ("BUILD", "deleting"), "the deletion holds it"
    finish(cloud, cast, JobKind.DELETE)
    assert cloud.get(f"/v2.1/servers/{server_id}").status_code == 404


def test_what_is_done_to_it_does_not_keep_it(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    assert cloud.snapshot(record.uuid).status_code == 202
    snapshot = cloud.casts.next()
    assert delete(cloud, record.uuid).status_code == 204
    assert cloud.casts.next()["method"] == "cancel_job"
    accept(cloud, JobKind.DELETE)
    assert cloud.ledger.find(snapshot["job_id"]).state is JobState.CANCELLED


def test_a_locked_one_stays(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    cloud.act(record.uuid, {"lock": None})
    reply = delete(cloud, record.uuid)
    assert (reply.status_code, "is locked" in message_of(reply)) == (409, True)
    assert delete(cloud, record.uuid, ADMIN).status_code == 204


def test_one_that_was_not_made_here_stays(cloud: Cloud, instance: InstanceRecord) -> None:
    for who in (DEMO, ADMIN):
        reply = delete(cloud, instance.uuid, who)
        assert (reply.status_code, "not made through this API" in message_of(reply)) == (403, True)
    assert delete(cloud, instance.uuid, OTHER).status_code == 404


def test_without_its_agent_it_stays(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    cloud.agents._down_after = dt.timedelta(seconds=-1)
    assert delete(cloud, record.uuid).status_code == 409
    assert states(cloud, record.uuid) == ("ACTIVE", None)


def test_a_deletion_that_failed_lets_it_go(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    delete(cloud, record.uuid)
    cast = accept(cloud, JobKind.DELETE)
    finish(cloud, cast, JobKind.DELETE, state=JobState.ERROR, reason="it is stuck")
    assert states(cloud, record.uuid) == ("ACTIVE", None)
    assert delete(cloud, record.uuid).status_code == 204


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


def test_both_are_told_as_novas_actions(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    delete(cloud, record.uuid)
    actions = cloud.get(f"/v2.1/servers/{record.uuid}/os-instance-actions").json["instanceActions"]
    assert [action["action"] for action in actions] == ["delete", "create"]
    kinds = [job.kind for job in cloud.ledger.jobs(JobQuery(instance_uuid=record.uuid))]
    assert kinds == [JobKind.DELETE, JobKind.CREATE]


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
