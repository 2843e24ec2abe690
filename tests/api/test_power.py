# SPDX-License-Identifier: Apache-2.0
"""Pause, start, stop, reboot, locks and resets: who may ask, when, and what comes of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from common.messages import PowerRequest
from common.reports import InstanceRecord
from common.states import JobKind, JobState, PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, headers
from tests.api.test_create_image import message_of

ADMIN, OTHER = "admin:ops", "eve:p-other"
#: Body, what the guest is at, task state meanwhile, RPC, status afterwards.
CHANGES = [
    ({"pause": None}, PowerState.RUNNING, "pausing", "pause_instance", "PAUSED"),
    ({"unpause": None}, PowerState.PAUSED, "unpausing", "unpause_instance", "ACTIVE"),
    ({"os-start": None}, PowerState.SHUTDOWN, "powering-on", "start_instance", "ACTIVE"),
    ({"os-stop": None}, PowerState.RUNNING, "powering-off", "stop_instance", "SHUTOFF"),
    ({"reboot": {"type": "SOFT"}}, PowerState.RUNNING, "rebooting", "reboot_instance", "ACTIVE"),
    (
        {"reboot": {"type": "hard"}},
        PowerState.SHUTDOWN,
        "rebooting_hard",
        "reboot_instance",
        "ACTIVE",
    ),
]
AFTER = {"PAUSED": PowerState.PAUSED, "ACTIVE": PowerState.RUNNING, "SHUTOFF": PowerState.SHUTDOWN}


def at(cloud: Cloud, instance: InstanceRecord, state: PowerState) -> None:
    """Let the guest be at that."""
    cloud.announce(agent_says.instance(uuid=instance.uuid, power_state=state))


def next_cast(cloud: Cloud, method: str) -> dict[str, Any]:
    """Return the arguments of the next cast, which must be of that method."""
    cast = cloud.casts.next()
    assert cast["method"] == method
    return cast


def finish(cloud: Cloud, cast: dict[str, Any], kind: JobKind, **changes: Any) -> None:
    """Let the agent say how it went."""
    report = agent_says.finished(
        cast["job_id"], cast["instance"]["uuid"], "", kind=kind, capture=None, **changes
    )
    cloud.report("job_finished", report)


@pytest.mark.parametrize(("body", "before", "task_state", "method", "after"), CHANGES)
def test_a_change_holds_the_instance_reaches_the_agent_and_shows_at_once(
    cloud: Cloud,
    instance: InstanceRecord,
    body: dict[str, Any],
    before: PowerState,
    task_state: str,
    method: str,
    after: str,
) -> None:
    at(cloud, instance, before)
    reply = cloud.act(instance.uuid, body)
    assert (reply.status_code, reply.content) == (202, b"")
    assert cloud.task_state(instance.uuid) == task_state
    cast = next_cast(cloud, method)
    kind = JobKind(method.partition("_")[0])
    request = PowerRequest.from_wire({**cast, "kind": kind})
    assert request.instance.uuid == instance.uuid
    assert request.reboot_type == ("HARD" if task_state == "rebooting_hard" else "SOFT")
    finish(cloud, cast, kind, power_state=AFTER[after])
    server = cloud.server(instance.uuid)
    assert (server["status"], server["OS-EXT-STS:task_state"]) == (after, None)
    job = cloud.get(f"/v1/jobs/{cast['job_id']}", ADMIN).json["job"]
    assert (job["kind"], job["state"], job["image_id"]) == (kind, "done", None)


@pytest.mark.parametrize(
    ("body", "state", "words"),
    [
        ({"pause": None}, PowerState.SHUTDOWN, "'pause' instance .* vm_state stopped"),
        ({"unpause": None}, PowerState.RUNNING, "'unpause' instance .* vm_state active"),
        ({"os-start": None}, PowerState.RUNNING, "'start' instance .* vm_state active"),
        ({"os-stop": None}, PowerState.SHUTDOWN, "'stop' instance .* vm_state stopped"),
        ({"reboot": {"type": "SOFT"}}, PowerState.PAUSED, "'reboot' instance .* vm_state paused"),
    ],
)
def test_a_state_that_excludes_it_is_told_as_nova_tells_it(
    cloud: Cloud, instance: InstanceRecord, body: dict[str, Any], state: PowerState, words: str
) -> None:
    at(cloud, instance, state)
    message = message_of(cloud.act(instance.uuid, body), 409)
    assert re.search(words, message), message
    assert cloud.casts.empty()


def test_what_holds_an_instance_excludes_every_change(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.snapshot(instance.uuid)
    message = message_of(cloud.act(instance.uuid, {"os-stop": None}), 409)
    assert "while it is in task_state image_snapshot_pending" in message
    cloud.casts.next()
    assert cloud.casts.empty()


@pytest.mark.parametrize(
    "body",
    [
        {"reboot": {"type": "MEDIUM"}},
        {"reboot": None},
        {"reboot": {"type": "SOFT", "force": True}},
        {"os-resetState": {"state": "stopped"}},
        {"lock": {"locked_reason": ""}},
        {"lock": {"why": "so"}},
    ],
)
def test_a_body_that_makes_no_sense_is_400(
    cloud: Cloud, instance: InstanceRecord, body: dict[str, Any]
) -> None:
    message_of(cloud.act(instance.uuid, body, ADMIN), 400)


def test_another_projects_instance_is_not_there(cloud: Cloud, instance: InstanceRecord) -> None:
    for body in ({"pause": None}, {"os-stop": None}, {"lock": None}, {"unlock": None}):
        message_of(cloud.act(instance.uuid, body, OTHER), 404)


def test_a_locked_instance_is_its_administrators_alone(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    assert cloud.act(instance.uuid, {"lock": {"locked_reason": "audit"}}).status_code == 202
    shown = cloud.server(instance.uuid)
    assert (shown["locked"], shown["locked_reason"]) == (True, "audit")
    message = message_of(cloud.act(instance.uuid, {"os-stop": None}), 409)
    assert message == f"Instance {instance.uuid} is locked"
    assert cloud.snapshot(instance.uuid).status_code == 202, "Nova's createImage looks at no lock"
    image_cast = cloud.casts.next()
    assert image_cast["method"] == "snapshot_instance"
    finish(cloud, image_cast, JobKind.SNAPSHOT, state=JobState.ERROR, reason="no")
    assert cloud.act(instance.uuid, {"os-stop": None}, ADMIN).status_code == 202


def test_locked_ones_are_found_and_others_are_not(cloud: Cloud, instance: InstanceRecord) -> None:
    other = agent_says.instance(name="other")
    cloud.announce(instance, other)
    cloud.act(instance.uuid, {"lock": None})

    def found(value: str) -> list[str]:
        reply = cloud.get(f"/v2.1/servers?locked={value}")
        return [server["name"] for server in reply.json["servers"]]

    assert (found("True"), found("False")) == (["web"], ["other"])


def test_what_an_administrator_locked_no_owner_unlocks(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.act(instance.uuid, {"lock": None}, ADMIN)
    cloud.act(instance.uuid, {"lock": None})
    assert cloud.act(instance.uuid, {"unlock": None}).status_code == 403
    assert cloud.server(instance.uuid)["locked"] is True
    assert cloud.act(instance.uuid, {"unlock": None}, ADMIN).status_code == 202
    assert cloud.server(instance.uuid)["locked"] is False
    cloud.act(instance.uuid, {"lock": None})
    assert cloud.act(instance.uuid, {"unlock": None}).status_code == 202


def test_before_2_73_a_lock_takes_no_reason(cloud: Cloud, instance: InstanceRecord) -> None:
    body = {"lock": {"locked_reason": "audit"}}
    assert cloud.act(instance.uuid, body, version="2.72").status_code == 202
    assert cloud.server(instance.uuid)["locked_reason"] is None


def test_a_reset_frees_a_stuck_instance_and_ends_what_holds_it(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    cast = cloud.casts.next()
    cloud.report("job_accepted", agent_says.accepted(cast["job_id"], instance.uuid, image_id))
    assert cloud.act(instance.uuid, {"os-resetState": {"state": "error"}}).status_code == 403
    reply = cloud.act(instance.uuid, {"os-resetState": {"state": "error"}}, ADMIN)
    assert reply.status_code == 202
    server = cloud.server(instance.uuid)
    assert (server["status"], server["OS-EXT-STS:task_state"]) == ("ERROR", None)
    assert server["fault"]["message"] == "An administrator holds the instance to be broken."
    assert next_cast(cloud, "cancel_job")["job_id"] == cast["job_id"]
    cloud.announce(instance)
    assert cloud.server(instance.uuid)["status"] == "ERROR", "whatever its host says"
    cloud.act(instance.uuid, {"os-resetState": {"state": "active"}}, ADMIN)
    assert cloud.server(instance.uuid)["status"] == "ACTIVE"


def test_what_stops_a_broken_instance_mends_it(cloud: Cloud, instance: InstanceRecord) -> None:
    cloud.act(instance.uuid, {"os-resetState": {"state": "error"}}, ADMIN)
    assert cloud.act(instance.uuid, {"os-stop": None}).status_code == 202
    cast = next_cast(cloud, "stop_instance")
    finish(cloud, cast, JobKind.STOP, power_state=PowerState.SHUTDOWN)
    assert cloud.server(instance.uuid)["status"] == "SHUTOFF"


def test_a_change_that_fails_mends_no_broken_instance(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.act(instance.uuid, {"os-resetState": {"state": "error"}}, ADMIN)
    cloud.act(instance.uuid, {"os-stop": None})
    cast = next_cast(cloud, "stop_instance")
    error = {"state": JobState.ERROR, "reason": "no", "power_state": PowerState.RUNNING}
    finish(cloud, cast, JobKind.STOP, **error)
    server = cloud.server(instance.uuid)
    assert (server["status"], server["OS-EXT-STS:power_state"]) == ("ERROR", PowerState.RUNNING)


def test_a_change_of_power_has_no_bandwidth_to_limit(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.act(instance.uuid, {"os-stop": None})
    job_id = next_cast(cloud, "stop_instance")["job_id"]
    url, body = f"/v1/jobs/{job_id}", {"bandwidth_limit": 5}
    reply = cloud.http.simulate_patch(url, json=body, headers=headers("admin:ops", "2.96"))
    assert reply.status_code == 409
    cloud.dispatcher.cast(job_id)
    assert next_cast(cloud, "stop_instance")["job_id"] == job_id, "it can be cast again"


def test_a_change_that_no_agent_accepts_ends_with_a_reason(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.act(instance.uuid, {"os-stop": None})
    job_id = next_cast(cloud, "stop_instance")["job_id"]
    finish_at = cloud.get(f"/v1/jobs/{job_id}", ADMIN).json["job"]["finished_at"]
    assert finish_at is None
    cloud.ledger.fail(job_id, "no compute agent accepted the job in time", "deadline_passed")
    cloud.reaper.round()
    assert cloud.task_state(instance.uuid) is None
    assert cloud.ledger.to_discard() == [], "it made no image that could be left"


def test_a_cast_from_elsewhere_appears_with_its_own_task_state(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    job_id = "5b7a1ad4-0000-4000-8000-00000000aaaa"
    report = agent_says.accepted(job_id, instance.uuid, "", kind=JobKind.STOP)
    cloud.report("job_accepted", report)
    assert cloud.task_state(instance.uuid) == "powering-off"
