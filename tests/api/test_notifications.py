# SPDX-License-Identifier: Apache-2.0
"""What becomes of a job is told by Nova's names, once, whatever way it goes."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg

from api_service.app import make_outbox
from api_service.notifications import NAMES, PHASES, VERSION, Notifications
from api_service.store.ledger import Ledger
from common import rpc
from common.notifier import Event, Outbox
from common.reports import InstanceRecord
from common.states import JobKind, JobState, PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud


class ToldAtOnce(Outbox):
    """An outbox without a thread, which keeps what it sends."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        super().__init__(self.events.append)

    def put(self, make: Any) -> None:
        """Make the event now."""
        self.events.append(make())

    def names(self) -> list[str]:
        """Return what was told."""
        return [event.event_type for event in self.events]


@pytest.fixture
def told(cloud: Cloud) -> ToldAtOnce:
    """What is told of the cloud's jobs."""
    outbox = ToldAtOnce()
    cloud.ledger._listener = Notifications(cloud.inventory, outbox).job_moved
    return outbox


def data(event: Event) -> dict[str, Any]:
    """Return the fields of a payload, as they go over the wire."""
    found: dict[str, Any] = json.loads(json.dumps(event.payload))["stillframe_object.data"]
    return found


def test_a_rebuild_is_told_by_novas_names_and_its_image_is_the_instances(
    cloud: Cloud, instance: InstanceRecord, told: ToldAtOnce
) -> None:
    image_id = cloud.images.add(owner="p-demo", size=1)
    cloud.act(instance.uuid, {"rebuild": {"imageRef": image_id}})
    ids = cloud.casts.next()["job_id"], instance.uuid, image_id
    about: dict[str, Any] = {"kind": JobKind.REBUILD}
    cloud.report("job_accepted", agent_says.accepted(*ids, **about))
    about |= {"capture": None, "power_state": PowerState.RUNNING}
    cloud.report("job_finished", agent_says.finished(*ids, **about))
    assert told.names() == ["instance.rebuild.start", "instance.rebuild.end"]
    payload = data(told.events[-1])
    assert (payload["snapshot_image_id"], payload["image_uuid"]) == (None, image_id)


def test_a_snapshot_is_told_from_start_to_end(
    cloud: Cloud, instance: InstanceRecord, told: ToldAtOnce
) -> None:
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    assert told.events == []
    ids = (job_id, instance.uuid, image_id)
    for _ in range(2):
        cloud.report("job_accepted", agent_says.accepted(*ids))
    for done in (100, 101, 500, 500, 990):
        cloud.report("job_progress", agent_says.progress(job_id, bytes_done=done))
    for _ in range(2):
        cloud.report("job_finished", agent_says.finished(*ids))
    start, *progress, end = told.events
    assert told.names() == [
        "instance.snapshot.start",
        *["instance.snapshot.progress"] * 3,
        "instance.snapshot.end",
    ]
    assert [data(event)["job"]["progress"] for event in progress] == [10, 50, 99]
    assert {event.level for event in told.events} == {"info"}
    first, last = data(start), data(end)
    assert (first["uuid"], first["snapshot_image_id"]) == (instance.uuid, image_id)
    assert (first["display_name"], first["tenant_id"]) == ("web", agent_says.PROJECT)
    assert (first["state"], first["power_state"]) == ("active", "running")
    assert (first["task_state"], last["task_state"]) == ("image_snapshot_pending", None)
    assert first["flavor"]["stillframe_object.data"]["memory_mb"] == 512
    assert (last["job"]["id"], last["job"]["state"], last["fault"]) == (job_id, "done", None)
    assert last["job"]["pause_ms"] == 31.5
    assert last["request_id"] == start.context.request_id
    assert start.context.user_id == first["action_initiator_user"] == "demo"


def test_a_failure_is_told_as_an_error_with_its_reason(
    cloud: Cloud, instance: InstanceRecord, told: ToldAtOnce
) -> None:
    cloud.snapshot(instance.uuid)
    job_id = cloud.casts.next()["job_id"]
    cloud.ledger.fail(job_id, "the agent is gone", "agent_unavailable")
    (event,) = told.events
    assert (event.event_type, event.level) == ("instance.snapshot.error", "error")
    fault = {"exception": "agent_unavailable", "exception_message": "the agent is gone"}
    assert data(event)["fault"] == fault


def test_what_was_given_up_and_is_done_after_all_is_told(
    cloud: Cloud, instance: InstanceRecord, told: ToldAtOnce
) -> None:
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    cloud.ledger.fail(job_id, "the agent is gone", "agent_unavailable")
    cloud.report("job_finished", agent_says.finished(job_id, instance.uuid, image_id))
    assert told.names() == ["instance.snapshot.error", "instance.snapshot.end"]


def test_a_job_that_is_cancelled_is_told_as_an_error(
    cloud: Cloud, instance: InstanceRecord, told: ToldAtOnce
) -> None:
    cloud.snapshot(instance.uuid)
    cloud.ledger.cancel(cloud.casts.next()["job_id"])
    (event,) = told.events
    assert event.event_type == "instance.snapshot.error"
    assert data(event)["fault"]["exception"] == "cancelled"


def test_a_job_that_came_to_an_agent_directly_is_told_too(
    cloud: Cloud, instance: InstanceRecord, told: ToldAtOnce
) -> None:
    ids = (str(uuid.uuid4()), instance.uuid, str(uuid.uuid4()))
    cloud.report("job_finished", agent_says.finished(*ids))
    assert told.names() == ["instance.snapshot.start", "instance.snapshot.end"]


def test_an_instance_that_nobody_knows_is_told_by_its_id(cloud: Cloud, told: ToldAtOnce) -> None:
    ids = (str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4()))
    cloud.report("job_accepted", agent_says.accepted(*ids))
    told_of = data(told.events[0])
    assert (told_of["uuid"], told_of["display_name"], told_of["flavor"]) == (ids[1], None, None)


NOVAS = {
    JobKind.PAUSE: ("pause", PowerState.RUNNING, {"pause": None}),
    JobKind.UNPAUSE: ("unpause", PowerState.PAUSED, {"unpause": None}),
    JobKind.START: ("power_on", PowerState.SHUTDOWN, {"os-start": None}),
    JobKind.STOP: ("power_off", PowerState.RUNNING, {"os-stop": None}),
    JobKind.REBOOT: ("reboot", PowerState.RUNNING, {"reboot": {"type": "SOFT"}}),
}


@pytest.mark.parametrize("kind", NOVAS, ids=str)
def test_changes_of_power_have_novas_names(cloud: Cloud, told: ToldAtOnce, kind: JobKind) -> None:
    name, before, body = NOVAS[kind]
    record = agent_says.instance(power_state=before)
    cloud.announce(record)
    assert cloud.act(record.uuid, body).status_code == 202
    job_id = cloud.casts.next()["job_id"]
    report = agent_says.finished(
        job_id, record.uuid, "", kind=kind, state=JobState.DONE, power_state=PowerState.RUNNING
    )
    cloud.report("job_finished", report)
    assert told.names() == [f"instance.{name}.start", f"instance.{name}.end"]
    assert data(told.events[1])["snapshot_image_id"] is None


@pytest.mark.parametrize(
    ("drivers", "wanted"),
    [([], False), (["noop"], False), (["messagingv2"], True), (["noop", "log"], True)],
    ids=str,
)
def test_without_a_driver_nothing_is_made(drivers: list[str], wanted: bool) -> None:
    conf = cfg.CONF
    conf([], project="stillframe", default_config_files=[], default_config_dirs=[])
    rpc.register_options(conf)
    conf.set_override("transport_url", "fake://")
    make_outbox(conf)  # registers the group
    conf.set_override("driver", drivers, group="oslo_messaging_notifications")
    try:
        assert (make_outbox(conf) is not None) is wanted
    finally:
        conf.clear_override("transport_url")
        conf.clear_override("driver", group="oslo_messaging_notifications")
        conf.reset()


def test_a_ledger_that_nobody_listens_to_reads_no_job_twice(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(cloud.ledger, Ledger)
    cloud.snapshot(instance.uuid)
    job_id = cloud.casts.next()["job_id"]
    read: list[Any] = []
    from api_service.store import records

    make = records.job
    monkeypatch.setattr(records, "job", lambda row: read.append(row) or make(row))
    cloud.ledger.fail(job_id, "no", "capture_failed")
    assert len(read) == 1


def test_the_document_names_every_event_and_field(
    cloud: Cloud, instance: InstanceRecord, told: ToldAtOnce
) -> None:
    cloud.snapshot(instance.uuid)
    cloud.ledger.fail(cloud.casts.next()["job_id"], "no", "capture_failed")
    text = (Path(__file__).parents[2] / "docs" / "notifications.md").read_text()
    named = set(re.findall(r"`([\w.]+)`", text))
    fields = data(told.events[0])
    inner = fields["flavor"]["stillframe_object.data"] | fields["fault"]
    assert fields.keys() | inner.keys() | told.events[0].payload.keys() <= named
    assert {NAMES.get(kind, str(kind)) for kind in JobKind} | PHASES.keys() <= named
    assert f"(version {VERSION})" in text
