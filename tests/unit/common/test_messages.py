# SPDX-License-Identifier: Apache-2.0
"""The wire contract: what is sent comes back, and what does not fit is named."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from common.errors import MalformedMessage
from common.messages import BackupRequest, InstanceRef, SnapshotRequest, request_from_wire
from common.reports import CaptureFigures, HostReport, InstanceRecord, JobOutcome, StepTime
from common.states import JobKind, JobState

INSTANCE, IMAGE, JOB = (str(uuid.UUID(int=number)) for number in (1, 2, 3))


def request(**changes: Any) -> dict[str, Any]:
    return {"instance": {"uuid": INSTANCE}, "image_id": IMAGE, "job_id": JOB, **changes}


def test_a_message_survives_json_and_back() -> None:
    outcome = JobOutcome(
        job_id=JOB,
        kind=JobKind.SNAPSHOT,
        host="h",
        instance=InstanceRef(uuid=INSTANCE, name="Größe"),
        image_id=IMAGE,
        state=JobState.DONE,
        capture=CaptureFigures(
            method="backup", consistency="crash", captured_at=1.5, instant_inside_pause=True
        ),
        steps=(StepTime(name="prepare", began_at=1.0, ended_at=2.0),),
        accepted_at=1.0,
        finished_at=3.0,
    )
    assert JobOutcome.from_wire(json.loads(json.dumps(outcome.to_wire()))) == outcome


def test_fields_of_a_newer_sender_are_ignored() -> None:
    wire = request(colour="blue", instance={"uuid": INSTANCE, "flavor": {}})
    assert SnapshotRequest.from_wire(wire).instance == InstanceRef(uuid=INSTANCE)


def test_whole_numbers_pass_for_fractions() -> None:
    assert SnapshotRequest.from_wire(request(deadline=17)).deadline == 17.0


@pytest.mark.parametrize(
    ("wire", "named"),
    [
        ([], "SnapshotRequest must be an object"),
        ({}, "SnapshotRequest.instance is missing"),
        (request(image_id=7), "SnapshotRequest.image_id must be of type str"),
        (request(instance={}), "SnapshotRequest.instance.uuid is missing"),
        (request(instance={"uuid": "web-1"}), "instance.uuid must be a UUID"),
        (request(job_id="1"), "job_id must be a UUID"),
        (request(deadline="soon"), "SnapshotRequest.deadline must be of type float"),
        (request(deadline=True), "SnapshotRequest.deadline must be of type float"),
        (request(options={"pause": "sometimes"}), "options.pause must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_named(wire: object, named: str) -> None:
    with pytest.raises(MalformedMessage, match=named):
        SnapshotRequest.from_wire(wire)


@pytest.mark.parametrize("limit", [-1, 1_000_001, 10**250])
def test_a_limit_that_is_none_is_refused(limit: int) -> None:
    with pytest.raises(MalformedMessage, match="bandwidth_limit must not be"):
        SnapshotRequest.from_wire(request(options={"bandwidth_limit": limit}))


@pytest.mark.parametrize(
    ("state", "image_id", "named"),
    [
        ("pending", IMAGE, "state must be an end"),
        ("running", IMAGE, "state must be an end"),
        ("done", "golden", "image_id must be a UUID"),
    ],
)
def test_an_outcome_that_is_none_is_refused(state: str, image_id: str, named: str) -> None:
    with pytest.raises(MalformedMessage, match=named):
        JobOutcome.from_wire(outcome(state, image_id))


def test_a_refusal_may_name_whatever_was_refused() -> None:
    """The agent answers a malformed cast with what stood in it."""
    assert JobOutcome.from_wire(outcome("error", "golden")).image_id == "golden"


def outcome(state: str, image_id: str) -> dict[str, Any]:
    return {
        "job_id": JOB,
        "kind": "snapshot",
        "host": "h",
        "instance": {"uuid": INSTANCE},
        "image_id": image_id,
        "state": state,
        "accepted_at": 1.0,
        "finished_at": 2.0,
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"backup_type": "x" * 256}, "backup_type"),
        ({"backup_type": None}, "backup_type"),
        ({"rotation": -1}, "rotation"),
        ({"rotation": 10**9}, "rotation"),
        ({"rotation": True}, "rotation"),
        ({"image_id": "x"}, "image_id"),
    ],
    ids=repr,
)
def test_a_backup_that_cannot_be_rotated_is_refused(changes: dict[str, Any], named: str) -> None:
    wire = request(backup_type="daily", rotation=1)
    assert request_from_wire(JobKind.BACKUP, wire) == BackupRequest.from_wire(wire)
    with pytest.raises(MalformedMessage, match=named):
        request_from_wire(JobKind.BACKUP, wire | changes)


def test_an_unknown_word_is_refused_with_the_known_ones() -> None:
    record = {
        "uuid": INSTANCE,
        "name": "n",
        "domain_name": "d",
        "project_id": "p",
        "user_id": "u",
        "flavor": {"name": "f", "vcpus": 1, "memory_mib": 1, "disk_gib": 1},
        "power_state": 99,
    }
    with pytest.raises(MalformedMessage, match="power_state must be one of 0, 1, 3"):
        InstanceRecord.from_wire(record)


def test_a_heartbeat_without_instances_is_told_from_one_without_any() -> None:
    wire = {"host": "h", "release": "1", "started_at": 1, "at": 2}
    assert HostReport.from_wire(wire).instances is None
    assert HostReport.from_wire({**wire, "instances": []}).instances == ()


def test_a_cast_without_a_job_id_is_the_same_job_when_doubled() -> None:
    wire = request()
    del wire["job_id"]
    first, second = SnapshotRequest.from_wire(wire), SnapshotRequest.from_wire(wire)
    assert first.job_id == second.job_id != JOB
