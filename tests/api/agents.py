# SPDX-License-Identifier: Apache-2.0
"""What an agent says, made by hand: reports as they come off the wire."""

from __future__ import annotations

import uuid
from typing import Any

from common import clock
from common.messages import InstanceRef
from common.reports import (
    CaptureFigures,
    Flavor,
    HostReport,
    Hypervisor,
    InstanceRecord,
    JobAccepted,
    JobOutcome,
    JobProgress,
    StepTime,
)
from common.states import JobKind, JobState, PowerState

HOST = "compute-1"
PROJECT = "p-demo"
USER = "demo"


def instance(**changes: Any) -> InstanceRecord:
    """Return an announced instance of project `p-demo`."""
    values: dict[str, Any] = {
        "uuid": str(uuid.uuid4()),
        "name": "web",
        "domain_name": "instance-00000001",
        "project_id": PROJECT,
        "user_id": USER,
        "flavor": Flavor(name="m1.tiny", vcpus=1, memory_mib=512, disk_gib=2),
        "image_ref": str(uuid.uuid4()),
        "power_state": PowerState.RUNNING,
        "image_properties": {"hw_disk_bus": "virtio", "os_type": "linux"},
        "root_device_name": "/dev/vda",
        "created_at": clock.epoch_s() - 3600,
    }
    return InstanceRecord(**(values | changes))


def heartbeat(
    *instances: InstanceRecord,
    host: str = HOST,
    complete: bool = True,
    at: float | None = None,
    open_jobs: tuple[str, ...] | None = None,
    agent_id: str | None = None,
    expires_s: float | None = None,
    networks: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return a host_report as it stands on the wire."""
    hypervisor = Hypervisor(
        type="QEMU",
        version=7_002_022,
        hostname=host,
        vcpus=8,
        memory_mib=16_384,
        host_ip="192.0.2.7",
        networks=networks,
    )
    report = HostReport(
        host=host,
        release="0.1.0",
        started_at=clock.epoch_s() - 60,
        at=clock.epoch_s() if at is None else at,
        hypervisor=hypervisor if complete else None,
        instances=instances if complete else None,
        open_jobs=open_jobs,
        agent_id=agent_id,
        expires_s=expires_s,
    )
    return report.to_wire()


def accepted(job_id: str, instance_uuid: str, image_id: str, **changes: Any) -> dict[str, Any]:
    """Return a job_accepted as it stands on the wire."""
    values: dict[str, Any] = {
        "job_id": job_id,
        "kind": JobKind.SNAPSHOT,
        "host": HOST,
        "instance": InstanceRef(uuid=instance_uuid, project_id=PROJECT, user_id=USER),
        "image_id": image_id,
        "at": clock.epoch_s(),
    }
    return JobAccepted(**(values | changes)).to_wire()


def progress(job_id: str, **changes: Any) -> dict[str, Any]:
    """Return a job_progress as it stands on the wire: half of 1000 bytes are up."""
    values: dict[str, Any] = {
        "job_id": job_id,
        "host": HOST,
        "step": "stream",
        "task_state": "image_uploading",
        "bytes_done": 500,
        "bytes_total": 1000,
        "rate_bytes_s": 100.0,
        "eta_s": 5.0,
        "at": clock.epoch_s(),
    }
    return JobProgress(**(values | changes)).to_wire()


def finished(job_id: str, instance_uuid: str, image_id: str, **changes: Any) -> dict[str, Any]:
    """Return a job_finished as it stands on the wire: all went well."""
    now = clock.epoch_s()
    values: dict[str, Any] = {
        "job_id": job_id,
        "kind": JobKind.SNAPSHOT,
        "host": HOST,
        "instance": InstanceRef(uuid=instance_uuid, project_id=PROJECT, user_id=USER),
        "image_id": image_id,
        "state": JobState.DONE,
        "size_bytes": 1000,
        "sha512": "ab" * 64,
        "capture": CaptureFigures(
            method="backup", consistency="crash", captured_at=now, pause_ms=31.5
        ),
        "steps": (StepTime(name="capture", began_at=now - 2, ended_at=now - 1),),
        "accepted_at": now - 3,
        "finished_at": now,
    }
    return JobOutcome(**(values | changes)).to_wire()
