# SPDX-License-Identifier: Apache-2.0
"""Options of a snapshot, cancelling a job, and changing its limit."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from api_service.policies import Authorizer
from common.errors import BrokerUnavailable
from common.messages import SnapshotOptions, disk_image_id
from common.reports import DiskImage, InstanceRecord
from common.states import JobState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, headers


def ask(cloud: Cloud, instance: InstanceRecord, **metadata: str) -> Any:
    body = {"createImage": {"name": "n", "metadata": metadata}}
    return cloud.act(instance.uuid, body)


def accepted(cloud: Cloud, instance: InstanceRecord) -> tuple[str, str]:
    """Return the ids of a job that its agent has, and of its image."""
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    cloud.report("job_accepted", agent_says.accepted(job_id, instance.uuid, image_id))
    return job_id, image_id


def cancel(cloud: Cloud, job_id: str, who: str = "demo:p-demo") -> Any:
    return cloud.http.simulate_delete(f"/v1/jobs/{job_id}", headers=headers(who, "2.96"))


def adjust(cloud: Cloud, job_id: str, body: Any, who: str = "admin:ops") -> Any:
    url = f"/v1/jobs/{job_id}"
    return cloud.http.simulate_patch(url, json=body, headers=headers(who, "2.96"))


def test_stock_clients_say_options_as_metadata(cloud: Cloud, instance: InstanceRecord) -> None:
    options = {
        "stillframe:pause": "never",
        "stillframe:freeze": "required",
        "stillframe:disks": "all",
        "stillframe:incremental": "yes",
        "stillframe:bandwidth_limit": "50",
    }
    image_id = ask(cloud, instance, purpose="nightly", **options).json["image_id"]
    assert SnapshotOptions.from_wire(cloud.casts.next()["options"]) == SnapshotOptions(
        pause="never", freeze="required", disks="all", incremental=True, bandwidth_limit=50
    )
    record = cloud.images.records[image_id]
    assert record["purpose"] == "nightly"
    assert not [key for key in record if key.startswith("stillframe:")]
    assert cloud.job_of(image_id)["options"]["disks"] == "all"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stillframe:paus", "never", "The options of a snapshot are stillframe:pause"),
        ("stillframe:pause", "perhaps", "'always' or 'never'"),
        ("stillframe:incremental", "perhaps", "stillframe:incremental"),
        ("stillframe:bandwidth_limit", "fast", "stillframe:bandwidth_limit"),
        ("stillframe:bandwidth_limit", "-1", "must not be negative"),
        ("stillframe:bandwidth_limit", "1000001", "must not be above 1000000"),
        ("stillframe:bandwidth_limit", "9" * 250, "must not be above 1000000"),
    ],
)
def test_an_option_that_does_not_exist_is_400_and_leaves_nothing(
    cloud: Cloud, instance: InstanceRecord, key: str, value: str, said: str
) -> None:
    reply = ask(cloud, instance, **{key: value})
    assert reply.status_code == 400
    assert said in reply.json["badRequest"]["message"]
    assert cloud.images.records == {}
    assert cloud.task_state(instance.uuid) is None


def test_a_job_that_no_agent_has_ends_at_once(cloud: Cloud, instance: InstanceRecord) -> None:
    cloud.casts.failure = BrokerUnavailable("away")
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    job_id = cloud.job_of(image_id)["id"]
    assert cancel(cloud, job_id).status_code == 202
    job = cloud.job_of(image_id)
    assert (job["state"], job["reason_code"]) == ("cancelled", "cancelled")
    assert cloud.task_state(instance.uuid) is None
    cloud.casts.failure = None
    cloud.reaper.round()
    assert cloud.images.records == {}


def test_a_job_at_work_is_cancelled_by_its_agent(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id, image_id = accepted(cloud, instance)
    reply = cancel(cloud, job_id)
    assert reply.status_code == 202
    assert reply.json["job"]["cancel_asked_at"] is not None
    cast = cloud.casts.next()
    assert (cast["method"], cast["host"], cast["job_id"]) == (
        "cancel_job",
        agent_says.HOST,
        job_id,
    )
    assert cloud.task_state(instance.uuid) is not None, "until the agent says so"
    outcome = {"state": JobState.CANCELLED, "reason": "the job was cancelled"}
    cloud.report("job_finished", agent_says.finished(job_id, instance.uuid, image_id, **outcome))
    assert cloud.job_of(image_id)["state"] == "cancelled"


def test_a_cancel_that_was_lost_is_cast_again(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id, _ = accepted(cloud, instance)
    cancel(cloud, job_id)
    assert cloud.casts.next()["method"] == "cancel_job"
    cloud.reaper.round()
    assert cloud.casts.next()["method"] == "cancel_job"


def test_a_job_that_has_ended_cannot_be_cancelled(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id, image_id = accepted(cloud, instance)
    cloud.report("job_finished", agent_says.finished(job_id, instance.uuid, image_id))
    assert cancel(cloud, job_id).status_code == 409
    assert adjust(cloud, job_id, {"bandwidth_limit": 5}).status_code == 409
    assert cloud.job_of(image_id)["state"] == "done"


def test_another_projects_job_can_be_neither_cancelled_nor_seen(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    job_id, _ = accepted(cloud, instance)
    assert cancel(cloud, job_id, "eve:p-other").status_code == 404
    assert cancel(cloud, str(uuid.uuid4())).status_code == 404
    assert cloud.casts.empty()


def test_the_operator_changes_a_jobs_limit(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id, image_id = accepted(cloud, instance)
    assert adjust(cloud, job_id, {"bandwidth_limit": 20}).status_code == 202
    cast = cloud.casts.next()
    assert (cast["method"], cast["bandwidth_limit"]) == ("adjust_job", 20)
    assert cloud.job_of(image_id)["options"]["bandwidth_limit"] == 20
    assert adjust(cloud, job_id, {"bandwidth_limit": 20}, "demo:p-demo").status_code == 403


def test_operators_may_keep_a_jobs_limit_to_themselves(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A very low one occupies a slot of the host for days."""
    allows = Authorizer.allows
    asked: list[str] = []

    def all_but_one(
        self: Authorizer, caller: Any, rule: str, project_id: str | None = None
    ) -> bool:
        asked.append(rule)
        is_it = rule == "stillframe:jobs:bandwidth_limit"
        return not is_it and allows(self, caller, rule, project_id)

    monkeypatch.setattr(Authorizer, "allows", all_but_one)
    reply = ask(cloud, instance, **{"stillframe:bandwidth_limit": "1"})
    assert reply.status_code == 403
    assert cloud.images.created == []
    assert ask(cloud, instance, **{"stillframe:pause": "never"}).status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"bandwidth_limit": -1},
        {"bandwidth_limit": "5"},
        {"bandwidth_limit": 1_000_001},
        {"bandwidth_limit": 10**250},
        {"x": 1},
    ],
)
def test_a_limit_that_is_none_is_400(
    cloud: Cloud, instance: InstanceRecord, body: dict[str, Any]
) -> None:
    job_id, _ = accepted(cloud, instance)
    assert adjust(cloud, job_id, body).status_code == 400


def test_an_image_for_each_disk_is_shown(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id, image_id = accepted(cloud, instance)
    images = tuple(
        DiskImage(image_id=one, disk=disk, size_bytes=500, sha512="ab" * 64)
        for one, disk in ((image_id, "vda"), (disk_image_id(image_id, "vdb"), "vdb"))
    )
    report = agent_says.finished(job_id, instance.uuid, image_id, images=images)
    cloud.report("job_finished", report)
    job = cloud.job_of(image_id)
    assert [image["disk"] for image in job["images"]] == ["vda", "vdb"]
    assert job["bytes_total"] == 1000


def test_the_images_that_a_dead_agent_made_besides_go_too(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    """Only those whose ids follow from the job's: a property can be anybody's."""
    job_id, image_id = accepted(cloud, instance)
    ours, foreign = disk_image_id(image_id, "vdb"), str(uuid.uuid4())
    for made in (ours, foreign):
        cloud.images.create(made, {"stillframe_job_id": job_id, "stillframe_disk": "vdb"})
    outcome = {"state": JobState.ERROR, "reason": "no", "reason_code": "capture_failed"}
    cloud.report("job_finished", agent_says.finished(job_id, instance.uuid, image_id, **outcome))
    cloud.reaper.round()
    assert list(cloud.images.records) == [foreign]
