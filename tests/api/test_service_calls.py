# SPDX-License-Identifier: Apache-2.0
"""What other services call the API for: as over REST, and every call is answered."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from oslo_db import exception as db_errors

from api_service.policies import Authorizer
from api_service.store.inventory import Inventory
from common import context
from common.glance import ImageServiceUnavailable
from common.reports import InstanceRecord
from common.states import PowerState
from tests.api import agents as agent_says
from tests.api.clouds import CALLS_AT_ONCE, Cloud

MEMBER = {"user_id": "demo", "project_id": agent_says.PROJECT, "roles": ["member", "reader"]}
READER = MEMBER | {"roles": ["reader"]}
STRANGER = MEMBER | {"project_id": "p-other"}
ADMIN = {"user_id": "root", "project_id": "ops", "roles": ["admin"]}
POWER = {
    "pause_instance": PowerState.RUNNING,
    "unpause_instance": PowerState.PAUSED,
    "start_instance": PowerState.SHUTDOWN,
    "stop_instance": PowerState.RUNNING,
    "reboot_instance": PowerState.RUNNING,
}


def call(cloud: Cloud, method: str, who: dict[str, Any] = MEMBER, **arguments: Any) -> Any:
    """Call a method for somebody; return the answer as it goes over the wire."""
    return getattr(cloud.calls, method)(context.new(**who), **arguments)


def snapshot(cloud: Cloud, instance_uuid: str, **arguments: Any) -> Any:
    """Call for a snapshot."""
    named = {"instance": {"uuid": instance_uuid}, "name": "nightly"}
    return call(cloud, "snapshot_instance", **(named | arguments))


def code(answer: Any) -> str:
    """Return why a call was refused."""
    assert answer["job_id"] is None
    found: str = answer["error"]["code"]
    return found


def test_a_snapshot_is_cast_to_the_instances_host(cloud: Cloud, instance: InstanceRecord) -> None:
    answer = snapshot(
        cloud, instance.uuid, metadata={"purpose": "dr"}, options={"freeze": "required"}
    )
    assert answer["error"] is None
    assert answer["state"] == "pending"
    cast = cloud.casts.next()
    assert (cast["job_id"], cast["image_id"]) == (answer["job_id"], answer["image_id"])
    assert (cast["host"], cast["options"]["freeze"]) == (agent_says.HOST, "required")
    record = cloud.images.records[answer["image_id"]]
    assert (record["name"], record["purpose"]) == ("nightly", "dr")
    assert (record["owner"], record["user_id"]) == (agent_says.PROJECT, "demo")


def test_the_request_id_of_the_caller_goes_on_to_the_agent(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    named = {"instance": {"uuid": instance.uuid}, "name": "nightly"}
    caller = context.new(**MEMBER)
    cloud.calls.snapshot_instance(caller, **named)
    assert cloud.casts.next()["caller"].request_id == caller.request_id


def test_a_call_that_comes_again_is_the_same_job(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id = str(uuid.uuid4())
    first = snapshot(cloud, instance.uuid, job_id=job_id)
    again = snapshot(cloud, instance.uuid, job_id=job_id.upper())
    assert first["job_id"] == again["job_id"] == job_id
    assert first["image_id"] == again["image_id"]
    assert len(cloud.images.created) == 1
    assert code(snapshot(cloud, instance.uuid)) == "conflict"


def test_of_the_same_call_many_times_at_once_one_makes_the_job(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    job_id = str(uuid.uuid4())
    with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        answers = list(
            pool.map(lambda _: snapshot(cloud, instance.uuid, job_id=job_id), range(CALLS_AT_ONCE))
        )
    assert {answer["job_id"] for answer in answers} == {job_id}
    assert len(cloud.images.created) == 1


def test_an_id_that_another_job_has_is_refused(cloud: Cloud, instance: InstanceRecord) -> None:
    other = agent_says.instance()
    cloud.announce(instance, other)
    job_id = snapshot(cloud, instance.uuid)["job_id"]
    assert code(snapshot(cloud, other.uuid, job_id=job_id)) == "conflict"
    pause = call(cloud, "pause_instance", instance={"uuid": instance.uuid}, job_id=job_id)
    assert code(pause) == "conflict"


def test_a_refused_call_leaves_its_id_free(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id = str(uuid.uuid4())
    cloud.announce(agent_says.instance(uuid=instance.uuid, power_state=PowerState.CRASHED))
    assert code(snapshot(cloud, instance.uuid, job_id=job_id)) == "conflict"
    cloud.announce(instance)
    assert snapshot(cloud, instance.uuid, job_id=job_id)["job_id"] == job_id


def test_what_became_of_a_job_is_told(cloud: Cloud, instance: InstanceRecord) -> None:
    ids = snapshot(cloud, instance.uuid)
    cloud.report("job_progress", agent_says.progress(ids["job_id"]))
    shown = call(cloud, "show_job", READER, job_id=ids["job_id"])
    assert (shown["state"], shown["progress"], shown["error"]) == ("running", 50, None)
    cloud.ledger.fail(ids["job_id"], "the disk broke", "capture_failed")
    again = snapshot(cloud, instance.uuid, job_id=ids["job_id"])
    assert (again["state"], again["reason"]) == ("error", "the disk broke")
    assert (again["reason_code"], again["error"]) == ("capture_failed", None)


def test_a_job_is_cancelled_and_twice_is_no_error(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id = snapshot(cloud, instance.uuid)["job_id"]
    for _ in range(2):
        answer = call(cloud, "cancel_job", job_id=job_id)
        assert (answer["state"], answer["reason_code"]) == ("cancelled", "cancelled")
    assert cloud.task_state(instance.uuid) is None


@pytest.mark.parametrize(("method", "before"), POWER.items(), ids=POWER)
def test_power_is_changed(cloud: Cloud, method: str, before: PowerState) -> None:
    record = agent_says.instance(power_state=before)
    cloud.announce(record)
    answer = call(cloud, method, instance={"uuid": record.uuid})
    assert (answer["error"], answer["image_id"]) == (None, None)
    cast = cloud.casts.next()
    assert (cast["method"], cast["job_id"]) == (method, answer["job_id"])


def test_a_reboot_may_be_hard(cloud: Cloud, instance: InstanceRecord) -> None:
    call(cloud, "reboot_instance", instance={"uuid": instance.uuid}, reboot_type="HARD")
    assert cloud.casts.next()["reboot_type"] == "HARD"


def test_a_lock_holds_for_services_too(cloud: Cloud, instance: InstanceRecord) -> None:
    cloud.act(instance.uuid, {"lock": None})
    named = {"instance": {"uuid": instance.uuid}}
    assert code(call(cloud, "stop_instance", **named)) == "conflict"
    assert call(cloud, "stop_instance", ADMIN, **named)["error"] is None


@pytest.mark.parametrize("method", ["snapshot_instance", *POWER, "show_job", "cancel_job"])
def test_the_policy_asks_whom_the_service_acts_for(
    cloud: Cloud, instance: InstanceRecord, method: str
) -> None:
    job_id = cloud.ledger.find(snapshot(cloud, instance.uuid)["job_id"])
    assert job_id is not None
    arguments: dict[str, Any] = {"job_id": job_id.id}
    if method not in ("show_job", "cancel_job"):
        arguments = {"instance": {"uuid": instance.uuid}}
    if method == "snapshot_instance":
        arguments["name"] = "n"
    assert code(call(cloud, method, STRANGER, **arguments)) == "not_found"
    assert code(call(cloud, method, {}, **arguments)) == "not_found"
    nobody = MEMBER | {"roles": []}
    assert code(call(cloud, method, nobody, **arguments)) == "forbidden"
    if method != "show_job":
        assert code(call(cloud, method, READER, **arguments)) == "forbidden"


def test_a_limit_needs_its_own_rule_as_over_rest(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    allows = Authorizer.allows

    def allows_no_limit(self: Authorizer, caller: Any, rule: str, project: Any = None) -> bool:
        return rule != "stillframe:jobs:bandwidth_limit" and allows(self, caller, rule, project)

    monkeypatch.setattr(Authorizer, "allows", allows_no_limit)
    assert code(snapshot(cloud, instance.uuid, options={"bandwidth_limit": 1})) == "forbidden"
    assert snapshot(cloud, instance.uuid)["error"] is None


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"instance": {}}, "instance.uuid"),
        ({"instance": 7}, "instance"),
        ({"name": None}, "name"),
        ({"name": ""}, "createImage.name"),
        ({"name": "n" * 256}, "createImage.name"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"": "x"}}, "createImage.metadata"),
        ({"options": {"pause": "maybe"}}, "options.pause"),
        ({"job_id": "7"}, "job_id"),
        ({"image_id": "00000000-0000-4000-8000-000000000001"}, "image_id"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_call_is_told_the_field(
    cloud: Cloud, instance: InstanceRecord, wrong: dict[str, Any], field: str
) -> None:
    answer = snapshot(cloud, instance.uuid, **wrong)
    assert code(answer) in ("malformed_message", "bad_request")
    assert field in answer["error"]["message"]
    assert not answer["error"]["retryable"]


def test_what_is_not_known_is_ignored(cloud: Cloud, instance: InstanceRecord) -> None:
    assert snapshot(cloud, instance.uuid, colour="blue")["error"] is None


def test_of_a_defect_the_caller_hears_nothing_and_the_log_everything(
    cloud: Cloud,
    instance: InstanceRecord,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("/etc/secret")

    monkeypatch.setattr(Inventory, "instance", broken)
    answer = snapshot(cloud, instance.uuid)
    assert code(answer) == "internal_error"
    assert "secret" not in str(answer)
    assert "/etc/secret" in caplog.text


def test_a_database_that_is_away_is_told_as_what_may_be_tried_again(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise db_errors.DBConnectionError("SELECT secret")

    monkeypatch.setattr(Inventory, "instance", away)
    answer = snapshot(cloud, instance.uuid)
    assert (code(answer), answer["error"]["retryable"]) == ("database_unavailable", True)
    assert "secret" not in str(answer)


def test_what_glance_refuses_is_answered_and_lets_the_instance_go(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.images.failure = ImageServiceUnavailable("the image service is away")
    answer = snapshot(cloud, instance.uuid)
    assert code(answer) == "image_service_unavailable"
    assert cloud.task_state(instance.uuid) is None


def test_calls_that_wait_for_glance_leave_threads_for_the_agents(cloud: Cloud) -> None:
    records = [agent_says.instance() for _ in range(CALLS_AT_ONCE + 1)]
    cloud.announce(*records)
    cloud.images.gate = threading.Event()
    with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        waiting = [pool.submit(snapshot, cloud, one.uuid) for one in records[:-1]]
        _eventually(lambda: len(cloud.ledger.open_jobs()) == CALLS_AT_ONCE)
        answer = snapshot(cloud, records[-1].uuid)
        cloud.images.gate.set()
        assert all(done.result()["error"] is None for done in waiting)
    assert (code(answer), answer["error"]["retryable"]) == ("too_many_requests", True)
    assert snapshot(cloud, records[-1].uuid)["error"] is None


def test_a_call_is_one_line_of_the_log(
    cloud: Cloud, instance: InstanceRecord, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "api_service.service_calls")
    caplog.set_level(logging.INFO, "api_service.snapshots")
    job_id = snapshot(cloud, instance.uuid)["job_id"]
    call(cloud, "show_job", job_id=job_id)
    (line,) = caplog.messages
    assert line.startswith("User demo of project p-demo asks for a snapshot: ")
    snapshot(cloud, str(uuid.uuid4()))
    assert caplog.messages[-1].startswith("Refused RPC snapshot_instance: not_found: Instance ")


def _eventually(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not come to be")
