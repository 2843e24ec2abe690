# SPDX-License-Identifier: Apache-2.0
"""A rebuild: who may ask for it, of which images, when, and what comes of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from api_service.quotas import Quotas
from common import clock
from common.errors import StillframeError
from common.glance import ImageServiceUnavailable
from common.messages import RebuildRequest
from common.reports import InstanceRecord
from common.states import JobKind, JobState, PowerState
from tests.api import agents as agent_says
from tests.api.clouds import DOWN_AFTER_S, Cloud, RecordedCasts, headers
from tests.api.memory_images import MemoryImages
from tests.api.test_create_image import message_of
from tests.api.test_response_schemas import VERSIONS, judge
from tests.api.test_service_calls import call

ADMIN, OTHER, READER = "admin:ops", "eve:p-other", "demo:p-demo:reader"
GIB = 1 << 30


@pytest.fixture
def image_id(images: MemoryImages) -> str:
    """An image of the caller's project that fits."""
    return images.add(owner="p-demo", visibility="private", size=GIB, min_disk=2)


def rebuild(cloud: Cloud, uuid: str, image_id: str, **asked: Any) -> Any:
    """Ask for a rebuild in the newest version."""
    return cloud.act(uuid, {"rebuild": {"imageRef": image_id, **asked}}, version="2.100")


def finish(cloud: Cloud, cast: dict[str, Any], **changes: Any) -> None:
    """Let the agent say how it went."""
    ids = cast["job_id"], cast["instance"]["uuid"], cast["image_id"]
    values = {"kind": JobKind.REBUILD, "capture": None, "size_bytes": None, "sha512": None}
    cloud.report("job_finished", agent_says.finished(*ids, **(values | changes)))


def test_a_rebuild_shows_reaches_the_agent_and_ends_with_the_new_image(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    reply = rebuild(cloud, instance.uuid, image_id)
    assert reply.status_code == 202, reply.text
    body = reply.json["server"]
    assert (body["id"], body["status"]) == (instance.uuid, "REBUILD")
    assert "adminPass" not in body
    assert reply.headers["location"] == body["links"][0]["href"]
    cast = cloud.casts.next()
    assert cast["method"] == "rebuild_instance"
    request = RebuildRequest.from_wire(cast)
    assert (request.image_id, request.start) == (image_id, None)
    told = agent_says.progress(cast["job_id"], step="start", task_state="rebuild_spawning")
    cloud.report("job_progress", told)
    assert cloud.server(instance.uuid)["status"] == "REBUILD"
    assert cloud.task_state(instance.uuid) == "rebuild_spawning"
    finish(cloud, cast, power_state=PowerState.RUNNING)
    server = cloud.server(instance.uuid)
    assert (server["status"], server["OS-EXT-STS:task_state"]) == ("ACTIVE", None)
    assert server["image"]["id"] == image_id
    job = cloud.get(f"/v1/jobs/{cast['job_id']}", ADMIN).json["job"]
    assert (job["kind"], job["state"], job["image_id"]) == ("rebuild", "done", None)
    assert job["options"]["image_id"] == image_id
    (action,) = cloud.get(f"/v2.1/servers/{instance.uuid}/os-instance-actions").json[
        "instanceActions"
    ]
    assert action["action"] == "rebuild"


@pytest.mark.parametrize("knows_the_job", [True, False])
def test_an_image_is_never_removed_because_a_rebuild_of_it_failed(
    cloud: Cloud, instance: InstanceRecord, image_id: str, knows_the_job: bool
) -> None:
    """Also where an agent got the job from somebody else, and the API hears of it afterwards."""
    ids = "5b7a1ad4-0000-4000-8000-000000000001", instance.uuid, image_id
    if knows_the_job:
        rebuild(cloud, instance.uuid, image_id)
        ids = (cloud.casts.next()["job_id"], *ids[1:])
    else:
        told = agent_says.accepted(*ids, kind=JobKind.REBUILD)
        cloud.report("job_accepted", told)
        assert cloud.task_state(instance.uuid) == "rebuilding"
    failed = {"state": JobState.ERROR, "reason": "it is no disk", "reason_code": "image_unsafe"}
    finish(
        cloud,
        {"job_id": ids[0], "instance": {"uuid": instance.uuid}, "image_id": image_id},
        power_state=PowerState.RUNNING,
        **failed,
    )
    cloud.reaper.round()
    assert cloud.images.deleted == []
    job = cloud.get(f"/v1/jobs/{ids[0]}", ADMIN).json["job"]
    assert (job["state"], job["options"]["image_id"]) == ("error", image_id)
    assert cloud.server(instance.uuid)["image"]["id"] == instance.image_ref


def test_what_else_is_asked_is_written_on_the_instance(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    asked = {
        "name": "web-2",
        "metadata": {"role": "front"},
        "description": "again",
        "hostname": "web-2",
        "accessIPv4": "192.0.2.9",
        "accessIPv6": "2001:db8::9",
        "OS-DCF:diskConfig": "AUTO",
        "adminPass": "secret",
        "preserve_ephemeral": False,
        "key_name": None,
        "user_data": None,
        "trusted_image_certificates": None,
    }
    body = rebuild(cloud, instance.uuid, image_id, **asked).json["server"]
    kept = ("name", "metadata", "description", "accessIPv4", "accessIPv6", "OS-DCF:diskConfig")
    assert {name: body[name] for name in kept} == {name: asked[name] for name in kept}
    assert body["OS-EXT-SRV-ATTR:hostname"] == "web-2"
    assert body["image"]["id"] == image_id
    assert "secret" not in str(cloud.casts.next())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"preserve_ephemeral": True}, "preserve_ephemeral.*root disk alone"),
        ({"key_name": "mine"}, "key_name.*no key pairs"),
        ({"user_data": "IyE="}, "user_data.*leave it out"),
        ({"trusted_image_certificates": ["a"]}, "trusted_image_certificates"),
        ({"imageRef": "x"}, "imageRef"),
        ({"personality": []}, "personality"),
        ({"image": "x"}, "image"),
        ({"hostname": "-"}, "hostname"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    cloud: Cloud, instance: InstanceRecord, image_id: str, asked: dict[str, Any], words: str
) -> None:
    message = message_of(rebuild(cloud, instance.uuid, image_id, **asked), 400)
    assert re.search(words, message), message
    assert cloud.task_state(instance.uuid) is None
    assert cloud.casts.empty()


def test_files_for_the_disk_are_refused_where_nova_still_takes_them(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    body = {"rebuild": {"imageRef": image_id, "personality": [{"path": "/a", "contents": ""}]}}
    assert "personality" in message_of(cloud.act(instance.uuid, body, version="2.1"), 400)


MISSING = "Cannot find image for rebuild"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"owner": "p-other"}, MISSING),
        ({"owner": "p-other", "visibility": "shared"}, MISSING),
        ({"status": "queued"}, "is not active"),
        ({"status": "deactivated"}, "is not active"),
        ({"size": 3 * GIB}, "Flavor disk is 2147483648 bytes, image is 3221225472 bytes"),
        ({"virtual_size": 3 * GIB}, "Flavor's disk is too small for requested image"),
        ({"min_disk": 3}, "smaller than the minimum size specified in image metadata"),
        ({"min_ram": 1024}, "Flavor's memory is too small"),
        ({"hw_architecture": "aarch64"}, "architecture aarch64, the server is of x86_64"),
        ({"architecture": "pdp11"}, "Architecture name 'pdp11' is not recognised"),
    ],
)
def test_a_wrong_image_is_a_400_in_novas_words_and_nothing_has_happened(
    cloud: Cloud, record: dict[str, Any], words: str
) -> None:
    instance = agent_says.instance(image_properties={"hw_architecture": "x86_64"})
    cloud.announce(instance)
    image_id = cloud.images.add(**({"owner": "p-demo", "size": GIB} | record))
    message = message_of(rebuild(cloud, instance.uuid, image_id), 400)
    assert words in message
    assert cloud.task_state(instance.uuid) is None
    assert cloud.casts.empty()


def test_an_image_that_is_not_there_is_told_as_nova_tells_it(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    reply = rebuild(cloud, instance.uuid, "5b7a1ad4-0000-4000-8000-00000000dead")
    assert message_of(reply, 400) == MISSING


@pytest.mark.parametrize("visibility", ["public", "community", "shared"])
def test_an_image_of_others_that_the_caller_sees_will_do(
    cloud: Cloud, instance: InstanceRecord, visibility: str
) -> None:
    image_id = cloud.images.add(owner="p-other", visibility=visibility, size=GIB)
    cloud.images.shared_with[image_id] = {"p-demo"}
    assert rebuild(cloud, instance.uuid, image_id).status_code == 202


def test_a_glance_that_is_away_holds_nothing(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    cloud.images.failure = ImageServiceUnavailable("the image service cannot be reached")
    assert rebuild(cloud, instance.uuid, image_id).status_code == 503
    assert cloud.task_state(instance.uuid) is None


@pytest.mark.parametrize("state", [PowerState.PAUSED, PowerState.SUSPENDED])
def test_a_state_that_excludes_it_is_told_as_nova_tells_it(
    cloud: Cloud, instance: InstanceRecord, image_id: str, state: PowerState
) -> None:
    cloud.announce(agent_says.instance(uuid=instance.uuid, power_state=state))
    message = message_of(rebuild(cloud, instance.uuid, image_id), 409)
    assert re.search("'rebuild' instance .* while it is in vm_state", message)


def test_a_server_that_is_off_stays_off_and_a_broken_one_is_to_run(
    cloud: Cloud, image_id: str
) -> None:
    off = agent_says.instance(power_state=PowerState.SHUTDOWN)
    crashed = agent_says.instance(power_state=PowerState.CRASHED)
    cloud.announce(off, crashed)
    for instance, start in ((off, None), (crashed, True)):
        assert rebuild(cloud, instance.uuid, image_id).status_code == 202
        assert cloud.casts.next()["start"] is start


def test_a_rebuild_that_is_done_mends_what_an_administrator_holds_to_be_broken(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    cloud.act(instance.uuid, {"os-resetState": {"state": "error"}}, ADMIN)
    assert rebuild(cloud, instance.uuid, image_id).status_code == 202
    finish(cloud, cloud.casts.next(), power_state=PowerState.RUNNING)
    assert cloud.server(instance.uuid)["status"] == "ACTIVE"


def test_the_operator_changes_the_limit_of_its_fetch(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    rebuild(cloud, instance.uuid, image_id)
    job_id = cloud.casts.next()["job_id"]
    url, body = f"/v1/jobs/{job_id}", {"bandwidth_limit": 5}
    reply = cloud.http.simulate_patch(url, json=body, headers=headers(ADMIN, "2.96"))
    assert reply.status_code == 202, reply.text
    assert cloud.dispatcher.cast(job_id), "its agent may not have got it"
    casts = [cloud.casts.next(), cloud.casts.next()]
    limits = {cast["method"]: cast["bandwidth_limit"] for cast in casts}
    assert limits == {"adjust_job": 5, "rebuild_instance": 5}


def test_whoever_may_not_is_told_so(cloud: Cloud, instance: InstanceRecord, image_id: str) -> None:
    body = {"rebuild": {"imageRef": image_id}}
    message_of(cloud.act(instance.uuid, body, OTHER), 404)
    cloud.act(instance.uuid, {"lock": None})
    assert "is locked" in message_of(cloud.act(instance.uuid, body), 409)
    assert cloud.act(instance.uuid, body, ADMIN).status_code == 202


def test_an_instance_that_is_busy_and_a_dead_agent_refuse_it(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    cloud.snapshot(instance.uuid)
    message = message_of(rebuild(cloud, instance.uuid, image_id), 409)
    assert "Cannot 'rebuild' instance" in message
    dead = agent_says.instance()
    cloud.announce(dead, host="dead", at=clock.epoch_s() - 2 * DOWN_AFTER_S)
    wanted = message_of(cloud.snapshot(dead.uuid), 409)
    assert message_of(rebuild(cloud, dead.uuid, image_id), 409) == wanted


def test_rebuilds_count_as_jobs_of_their_project(
    database_url: str, images: MemoryImages, casts: RecordedCasts, image_id: str
) -> None:
    cloud = Cloud(database_url, images, casts, quotas=Quotas(open_jobs=1))
    first, second = agent_says.instance(), agent_says.instance()
    cloud.announce(first, second)
    assert rebuild(cloud, first.uuid, image_id).status_code == 202
    assert "Quota exceeded" in message_of(rebuild(cloud, second.uuid, image_id), 403)
    cloud.database.engine.dispose()


def test_too_much_metadata_is_refused_as_on_the_server(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    many = {f"k{n}": "v" for n in range(129)}
    message = message_of(rebuild(cloud, instance.uuid, image_id, metadata=many), 403)
    assert message == "Maximum number of metadata items exceeds 128"


def test_a_store_that_fails_behind_the_reservation_lets_the_instance_go(
    cloud: Cloud, instance: InstanceRecord, image_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StillframeError("no")

    monkeypatch.setattr("api_service.store.overrides.Overrides.describe", fail)
    rebuild(cloud, instance.uuid, image_id, name="other")
    assert cloud.task_state(instance.uuid) is None
    assert cloud.casts.empty()


def test_other_services_ask_for_it_by_rpc(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    answer = call(cloud, "rebuild_instance", instance={"uuid": instance.uuid}, image_id=image_id)
    assert (answer["state"], answer["image_id"], answer["error"]) == ("pending", None, None)
    assert cloud.casts.next()["image_id"] == image_id
    again = call(
        cloud,
        "rebuild_instance",
        instance={"uuid": instance.uuid},
        image_id=image_id,
        job_id=answer["job_id"],
    )
    assert again["job_id"] == answer["job_id"]
    refused = call(cloud, "rebuild_instance", instance={"uuid": instance.uuid}, image_id="x")
    assert refused["error"]["code"] == "malformed_message"


def test_a_rebuild_answers_with_novas_shape_in_every_version(
    cloud: Cloud, instance: InstanceRecord, image_id: str
) -> None:
    body = {"rebuild": {"imageRef": image_id}}
    for version in VERSIONS:
        reply = cloud.act(instance.uuid, body, version=version)
        judge(reply, "servers", "rebuild_server", version)
        finish(cloud, cloud.casts.next(), power_state=PowerState.RUNNING)
