# SPDX-License-Identifier: Apache-2.0
"""createBackup: Nova's contract of the request; which older ones go is `test_rotation`'s."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from api_service.notifications import Notifications
from api_service.quotas import Quotas
from common import context
from common.messages import BackupRequest, SnapshotOptions
from common.reports import InstanceRecord
from common.states import JobKind, PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, RecordedCasts
from tests.api.memory_images import MemoryImages
from tests.api.test_create_image import assert_nothing_left, message_of
from tests.api.test_notifications import ToldAtOnce

BODY = {"name": "nightly", "backup_type": "daily", "rotation": 2}
MEMBER = {"user_id": "demo", "project_id": agent_says.PROJECT, "roles": ["member", "reader"]}


def ask(cloud: Cloud, instance: InstanceRecord, version: str = "2.96", **changes: Any) -> Any:
    return cloud.act(instance.uuid, {"createBackup": BODY | changes}, version=version)


@pytest.mark.parametrize("rotation", [0, 1, "3"])
def test_from_2_45_the_body_names_the_image(
    cloud: Cloud, instance: InstanceRecord, rotation: Any
) -> None:
    reply = ask(cloud, instance, "2.45", rotation=rotation)
    assert reply.status_code == 202
    assert reply.json == {"image_id": next(iter(cloud.images.records))}
    assert "location" not in reply.headers


@pytest.mark.parametrize("version", ["2.1", "2.44"])
def test_before_the_location_names_it(cloud: Cloud, instance: InstanceRecord, version: str) -> None:
    reply = ask(cloud, instance, version)
    assert (reply.status_code, reply.content) == (202, b"")
    (image_id,) = cloud.images.records
    assert reply.headers["location"].endswith(f"/v2.1/images/{image_id}")


def test_unless_it_will_not_stay(cloud: Cloud, instance: InstanceRecord) -> None:
    reply = ask(cloud, instance, "2.44", rotation=0)
    assert (reply.status_code, reply.content) == (202, b"")
    assert "location" not in reply.headers


@pytest.mark.parametrize(
    "changes",
    [
        {"rotation": -1},
        {"rotation": "-1"},
        {"rotation": "many"},
        {"rotation": ""},
        {"rotation": 1.5},
        {"rotation": True},
        {"rotation": None},
        {"rotation": 10**9},
        {"backup_type": 1},
        {"backup_type": "x" * 256},
        {"name": ""},
        {"name": " nightly"},
        {"metadata": {"key": 1}},
        {"metadata": {"owner": "p-other"}},
        {"metadata": {"stillframe:paus": "never"}},
        {"more": 1},
    ],
    ids=repr,
)
def test_a_body_that_does_not_fit_is_400_and_leaves_nothing(
    cloud: Cloud, instance: InstanceRecord, changes: Any
) -> None:
    (key,) = changes
    wrong = next(iter(changes["metadata"])) if key == "metadata" else key
    assert wrong in message_of(ask(cloud, instance, **changes), 400)
    assert_nothing_left(cloud, instance)


@pytest.mark.parametrize("key", sorted(BODY))
def test_each_of_the_three_is_needed(cloud: Cloud, instance: InstanceRecord, key: str) -> None:
    body = {name: value for name, value in BODY.items() if name != key}
    assert key in message_of(cloud.act(instance.uuid, {"createBackup": body}), 400)


def test_the_agent_is_asked_for_a_backup(cloud: Cloud, instance: InstanceRecord) -> None:
    image_id = ask(cloud, instance, metadata={"stillframe:pause": "never"}).json["image_id"]
    cast = cloud.casts.next()
    assert (cast["method"], cast["host"]) == ("backup_instance", agent_says.HOST)
    request = BackupRequest.from_wire(cast)
    assert (request.image_id, request.instance.uuid) == (image_id, instance.uuid)
    assert (request.backup_type, request.rotation) == ("daily", 2)
    assert request.options == SnapshotOptions(pause="never")
    assert cloud.task_state(instance.uuid) == "image_backup"


def test_the_record_is_what_nova_writes(cloud: Cloud, instance: InstanceRecord) -> None:
    """A user may call the image what they like, but not its type."""
    metadata = {"colour": "red", "image_type": "test", "backup_type": "mine"}
    record = cloud.images.records[ask(cloud, instance, metadata=metadata).json["image_id"]]
    said = {"colour": "red", "image_type": "test", "backup_type": "daily", "name": "nightly"}
    assert record.items() >= said.items()
    other = agent_says.instance()
    cloud.announce(instance, other)
    record = cloud.images.records[ask(cloud, other).json["image_id"]]
    assert (record["image_type"], record["instance_uuid"]) == ("backup", other.uuid)


def test_a_busy_instance_is_409_in_novas_words(cloud: Cloud, instance: InstanceRecord) -> None:
    assert ask(cloud, instance).status_code == 202
    said = message_of(ask(cloud, instance), 409)
    assert said == (
        f"Cannot 'createBackup' instance {instance.uuid} while it is in task_state image_backup"
    )
    assert len(cloud.images.records) == 1


def test_so_is_one_in_error(cloud: Cloud) -> None:
    broken = agent_says.instance(power_state=PowerState.CRASHED)
    cloud.announce(broken)
    said = message_of(ask(cloud, broken), 409)
    assert said == f"Cannot 'createBackup' instance {broken.uuid} while it is in vm_state error"


def test_it_counts_as_an_open_job(
    database_url: str, images: MemoryImages, casts: RecordedCasts
) -> None:
    cloud = Cloud(database_url, images, casts, quotas=Quotas(open_jobs=1))
    one, two = agent_says.instance(), agent_says.instance()
    cloud.announce(one, two)
    assert ask(cloud, one).status_code == 202
    assert "Quota exceeded for jobs" in message_of(ask(cloud, two), 403)
    cloud.database.engine.dispose()


def test_the_job_tells_of_which_type_it_is(cloud: Cloud, instance: InstanceRecord) -> None:
    image_id = ask(cloud, instance).json["image_id"]
    job = cloud.job_of(image_id)
    assert (job["kind"], job["backup_type"], job["rotation"]) == ("backup", "daily", 2)
    assert job["removed_at"] is None
    assert [one["id"] for one in cloud.get("/v1/jobs?kind=backup").json["jobs"]] == [job["id"]]


def test_the_action_and_its_event_have_novas_names(cloud: Cloud, instance: InstanceRecord) -> None:
    request_id = ask(cloud, instance).headers["x-compute-request-id"]
    url = f"/v2.1/servers/{instance.uuid}/os-instance-actions/{request_id}"
    action = cloud.get(url).json["instanceAction"]
    assert action["action"] == "createBackup"
    assert action["events"][0]["event"] == "compute_backup_instance"


def test_it_is_told_as_the_snapshot_that_it_is(cloud: Cloud, instance: InstanceRecord) -> None:
    told = ToldAtOnce()
    cloud.ledger._listener = Notifications(cloud.inventory, told).job_moved
    image_id = ask(cloud, instance).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    report = {"kind": JobKind.BACKUP}
    accepted = agent_says.accepted(job_id, instance.uuid, image_id, **report)
    cloud.report("job_accepted", accepted)
    finished = agent_says.finished(job_id, instance.uuid, image_id, **report)
    cloud.report("job_finished", finished)
    assert told.names() == ["instance.snapshot.start", "instance.snapshot.end"]


def call(cloud: Cloud, instance_uuid: str, **arguments: Any) -> Any:
    """Call as another service does, for a member of the project."""
    named = {"instance": {"uuid": instance_uuid}, **BODY, **arguments}
    return cloud.calls.backup_instance(context.new(**MEMBER), **named)


def test_other_services_call_for_one_once(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id = str(uuid.uuid4())
    answers = [call(cloud, instance.uuid, job_id=job_id) for _ in range(2)]
    assert [answer["job_id"] for answer in answers] == [job_id] * 2
    cast = cloud.casts.next()
    assert (cast["method"], cast["backup_type"], cast["rotation"]) == (
        "backup_instance",
        "daily",
        2,
    )
    assert list(cloud.images.records) == [answers[0]["image_id"]]


@pytest.mark.parametrize(
    "arguments", [{"rotation": -1}, {"rotation": None}, {"backup_type": None}, {"name": ""}]
)
def test_a_call_that_does_not_fit_is_refused(
    cloud: Cloud, instance: InstanceRecord, arguments: Any
) -> None:
    answer = call(cloud, instance.uuid, **arguments)
    assert answer["error"]["code"] in ("bad_request", "malformed_message")
    assert_nothing_left(cloud, instance)


def test_a_call_for_another_projects_instance_finds_none(cloud: Cloud) -> None:
    other = agent_says.instance(project_id="p-other")
    cloud.announce(other)
    assert call(cloud, other.uuid)["error"]["code"] == "not_found"
