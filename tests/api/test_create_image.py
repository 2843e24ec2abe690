# SPDX-License-Identifier: Apache-2.0
"""createImage: what a 202 promises, what is refused, and that a refusal leaves nothing."""

from __future__ import annotations

import queue
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from common.errors import StillframeError
from common.glance import ImageRefused, ImageServiceUnavailable
from common.messages import SnapshotRequest
from common.reports import InstanceRecord
from common.states import PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.memory_images import MemoryImages

FAULT_OF_STATUS = {
    400: "badRequest",
    403: "forbidden",
    404: "itemNotFound",
    409: "conflictingRequest",
}


def assert_nothing_left(cloud: Cloud, instance: InstanceRecord) -> None:
    """No image, no cast, and the instance free for the next request."""
    assert cloud.images.records == {}
    assert cloud.task_state(instance.uuid) is None
    assert cloud.casts.empty()


def message_of(reply: Any, status: int) -> str:
    """Return a fault's message; the body must be Nova's fault of that status."""
    assert reply.status_code == status, reply.text
    fault = reply.json[FAULT_OF_STATUS[status]]
    assert fault["code"] == status
    message: str = fault["message"]
    return message


def test_from_2_45_the_body_names_the_image(cloud: Cloud, instance: InstanceRecord) -> None:
    reply = cloud.snapshot(instance.uuid, version="2.45")
    assert reply.status_code == 202
    assert list(reply.json) == ["image_id"]
    assert "location" not in reply.headers
    assert list(cloud.images.records) == [reply.json["image_id"]]


@pytest.mark.parametrize("version", ["2.1", "2.44"])
def test_before_the_location_names_it(cloud: Cloud, instance: InstanceRecord, version: str) -> None:
    reply = cloud.snapshot(instance.uuid, version=version)
    assert reply.status_code == 202
    assert reply.content == b""
    image_id = reply.headers["location"].rpartition("/images/")[2]
    assert list(cloud.images.records) == [image_id]


def test_a_202_holds_the_instance_and_reaches_the_agent(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    cast = cloud.casts.next()
    assert (cast["method"], cast["host"]) == ("snapshot_instance", agent_says.HOST)
    fields = {key: cast[key] for key in ("instance", "image_id", "job_id", "deadline", "options")}
    request = SnapshotRequest.from_wire(fields)
    assert (request.instance.uuid, request.image_id) == (instance.uuid, image_id)
    assert request.deadline is not None
    assert cloud.task_state(instance.uuid) == "image_snapshot_pending"
    assert cloud.job_of(image_id)["id"] == request.job_id


def test_the_cast_carries_the_request_id_and_no_token(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    reply = cloud.snapshot(instance.uuid)
    caller = cloud.casts.next()["caller"]
    assert caller.request_id == reply.headers["x-openstack-request-id"]
    assert (caller.user_id, caller.project_id) == ("demo", "p-demo")
    assert caller.resource_uuid == instance.uuid
    assert not caller.auth_token


def test_the_record_is_what_nova_writes(cloud: Cloud, instance: InstanceRecord) -> None:
    image_id = cloud.snapshot(instance.uuid, name="nightly").json["image_id"]
    record = cloud.images.records[image_id]
    expected = {
        "name": "nightly",
        "visibility": "private",
        "owner": agent_says.PROJECT,
        "instance_uuid": instance.uuid,
        "user_id": "demo",
        "image_type": "snapshot",
        "base_image_ref": instance.image_ref,
        "hw_disk_bus": "virtio",
        "os_type": "linux",
        "min_disk": 2,
    }
    assert {key: record.get(key) for key in expected} == expected
    # Unknown until the agent has chosen them; Glance takes them later only if unset.
    assert not record.get("disk_format")
    assert not record.get("container_format")


def test_keys_and_signatures_are_not_inherited(cloud: Cloud) -> None:
    properties = {
        "img_signature": "x",
        "os_glance_importing": "x",
        "cinder_encryption_key_id": "x",
        "hw_rng_model": "virtio",
    }
    record = agent_says.instance(image_properties=properties)
    cloud.announce(record)
    made = cloud.images.records[cloud.snapshot(record.uuid).json["image_id"]]
    assert set(properties) & set(made) == {"hw_rng_model"}


def test_the_users_metadata_may_override_the_image_type(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    """Tempest insists on it."""
    metadata = {"image_type": "test", "colour": "red"}
    body = {"createImage": {"name": "s", "metadata": metadata}}
    image_id = cloud.act(instance.uuid, body).json["image_id"]
    assert cloud.images.records[image_id].items() >= metadata.items()


@pytest.mark.parametrize(
    "key", ["owner", "id", "visibility", "status", "min_disk", "locations", "os_glance_x", "name"]
)
def test_the_users_metadata_is_no_way_to_the_records_own_attributes(
    cloud: Cloud, instance: InstanceRecord, key: str
) -> None:
    """Our credentials may write what the tenant's may not: a property named so must not pass."""
    body = {"createImage": {"name": "nightly", "metadata": {key: "p-other"}}}
    reply = cloud.act(instance.uuid, body)
    if reply.status_code == 400:
        assert key in message_of(reply, 400)
        assert_nothing_left(cloud, instance)
    else:
        assert reply.status_code == 202
        record = cloud.images.records[reply.json["image_id"]]
        assert record.get(key) != "p-other"


def test_metadata_cannot_pose_as_our_own_findings(cloud: Cloud, instance: InstanceRecord) -> None:
    """stillframe_* says what was measured and verified."""
    body = {"createImage": {"name": "s", "metadata": {"stillframe_sha512": "00"}}}
    assert "stillframe_sha512" in message_of(cloud.act(instance.uuid, body), 400)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"createImage": {}}, "name"),
        ({"createImage": {"name": ""}}, "name"),
        ({"createImage": {"name": "x" * 256}}, "name"),
        ({"createImage": {"name": "s", "extra": 1}}, "extra"),
        ({"createImage": {"name": "s", "metadata": {"k": 1}}}, "k"),
        ({"createImage": None}, "createImage"),
        ({"createImage": {"name": "s"}, "pause": None}, ""),
        ({"fly": None}, "fly"),
        ({}, ""),
        ([], ""),
        ("createImage", ""),
        (None, ""),
    ],
)
def test_a_bad_body_is_400_and_names_the_field(
    cloud: Cloud, instance: InstanceRecord, body: Any, named: str
) -> None:
    assert named in message_of(cloud.act(instance.uuid, body), 400)
    assert_nothing_left(cloud, instance)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"createImage": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b"[" * 50_000,
        b'{"createImage": {"name": "\\ud800"}}',
        b'{"createImage": NaN}',
        b'{"lock": Infinity}',
        b'{"createImage": {"name": "a", "name": "b"}}',
        b'{"pause": null, "pause": null}',
        b'{"createImage": {"name": "\xff\xfe"}}',
        b'{"lock": ' + b"9" * 100_000 + b"}",
    ],
)
def test_what_is_no_json_is_400(cloud: Cloud, instance: InstanceRecord, data: bytes) -> None:
    reply = cloud.http.simulate_post(
        f"/v2.1/servers/{instance.uuid}/action",
        body=data,
        headers={"X-Auth-Token": "demo:p-demo", "Content-Type": "application/json"},
    )
    message_of(reply, 400)
    assert_nothing_left(cloud, instance)


def test_a_body_of_a_megabyte_is_refused(cloud: Cloud, instance: InstanceRecord) -> None:
    reply = cloud.act(instance.uuid, {"createImage": {"name": "x" * 2**20}})
    assert reply.status_code == 413
    assert_nothing_left(cloud, instance)


def test_an_unknown_instance_is_404(cloud: Cloud) -> None:
    message_of(cloud.snapshot(str(uuid.uuid4())), 404)
    message_of(cloud.snapshot("not-a-uuid"), 404)


def test_another_projects_instance_is_404(cloud: Cloud, instance: InstanceRecord) -> None:
    message_of(cloud.snapshot(instance.uuid, who="eve:p-other"), 404)
    assert_nothing_left(cloud, instance)


def test_a_second_request_is_409_in_novas_words(cloud: Cloud, instance: InstanceRecord) -> None:
    cloud.snapshot(instance.uuid)
    assert message_of(cloud.snapshot(instance.uuid), 409) == (
        f"Cannot 'createImage' instance {instance.uuid} while it is in task_state "
        "image_snapshot_pending"
    )
    assert len(cloud.images.created) == 1


def test_a_crashed_instance_is_409(cloud: Cloud) -> None:
    record = agent_says.instance(power_state=PowerState.CRASHED)
    cloud.announce(record)
    message = message_of(cloud.snapshot(record.uuid), 409)
    assert message == f"Cannot 'createImage' instance {record.uuid} while it is in vm_state error"
    assert_nothing_left(cloud, record)


@pytest.mark.parametrize(
    "power_state", [PowerState.SHUTDOWN, PowerState.PAUSED, PowerState.SUSPENDED]
)
def test_one_that_does_not_run_is_taken(cloud: Cloud, power_state: PowerState) -> None:
    record = agent_says.instance(power_state=power_state)
    cloud.announce(record)
    assert cloud.snapshot(record.uuid).status_code == 202


def test_a_dead_agent_is_409_and_leaves_nothing(cloud: Cloud) -> None:
    record = agent_says.instance()
    cloud.announce(record)
    cloud.agents._down_after *= 0
    message = message_of(cloud.snapshot(record.uuid), 409)
    assert "agent" in message
    assert agent_says.HOST not in message
    assert_nothing_left(cloud, record)


@pytest.mark.parametrize("round_", range(3))
def test_of_racing_requests_exactly_one_wins(
    database_url: str, images: MemoryImages, cloud: Cloud, instance: InstanceRecord, round_: int
) -> None:
    """Two API processes (so to say), eight requests at once; the losers leave no image."""
    other = Cloud(database_url, images, cloud.casts)
    start = threading.Barrier(8)

    def ask(number: int) -> Any:
        start.wait(10)
        return (cloud, other)[number % 2].snapshot(instance.uuid, name=f"racer-{number}")

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, range(8)))
    other.database.engine.dispose()
    assert sorted(reply.status_code for reply in replies) == [202] + [409] * 7
    (winner,) = [reply.json["image_id"] for reply in replies if reply.status_code == 202]
    assert list(images.records) == [winner]
    for reply in replies:
        if reply.status_code == 409:
            assert "while it is in task_state" in message_of(reply, 409)
    assert cloud.casts.next()["image_id"] == winner
    with pytest.raises(queue.Empty):
        cloud.casts._casts.get(timeout=0.2)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ImageRefused("the image service refuses: over quota", 413), 403),
        (ImageRefused("the image service refuses: forbidden", 403), 403),
        (ImageRefused("the image service refuses: bad property", 400), 400),
        (ImageServiceUnavailable("the image service cannot be reached"), 503),
    ],
)
def test_when_glance_refuses_nothing_is_left(
    cloud: Cloud, instance: InstanceRecord, failure: StillframeError, status: int
) -> None:
    cloud.images.failure = failure
    reply = cloud.snapshot(instance.uuid)
    assert reply.status_code == status
    (fault,) = reply.json.values()
    assert failure.message in fault["message"]
    assert ("retry-after" in reply.headers) == (status == 503)
    cloud.images.failure = None
    assert_nothing_left(cloud, instance)
    (job,) = cloud.get("/v1/jobs", "admin:ops").json["jobs"]
    assert (job["state"], job["reason"]) == ("error", failure.message)
    assert cloud.snapshot(instance.uuid).status_code == 202


def test_a_record_whose_creation_was_not_answered_is_deleted_when_glance_is_back(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Glance made it, the answer was lost, and Glance was away when we wanted to undo."""
    create = cloud.images.create
    away = ImageServiceUnavailable("the image service cannot be reached")

    def answer_lost(image_id: str, record: dict[str, Any]) -> None:
        create(image_id, record)
        cloud.images.failure = away
        raise away

    monkeypatch.setattr(cloud.images, "create", answer_lost)
    assert cloud.snapshot(instance.uuid).status_code == 503
    cloud.images.failure = None
    cloud.reaper.round()
    assert_nothing_left(cloud, instance)


def test_200_metadata_items_are_no_5xx(cloud: Cloud, instance: InstanceRecord) -> None:
    metadata = {f"key{number}": "v" for number in range(200)}
    reply = cloud.act(instance.uuid, {"createImage": {"name": "s", "metadata": metadata}})
    assert reply.status_code in (400, 403)
    assert_nothing_left(cloud, instance)


def test_a_request_never_waits_for_the_broker(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(cloud.casts, "cast", lambda *_, **__: released.wait(30))
    try:
        assert cloud.snapshot(instance.uuid).status_code == 202
    finally:
        released.set()
