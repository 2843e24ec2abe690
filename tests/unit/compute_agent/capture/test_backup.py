# SPDX-License-Identifier: Apache-2.0
"""A backup job that is open already never makes a guest wait inside a pause."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from common.errors import InstanceBusy
from compute_agent.capture.backup import BackupCapture
from compute_agent.capture.base import CaptureTarget, Plan
from compute_agent.capture.workspace import Directories
from tests.unit.compute_agent.stage import disk_of


class Guest:
    """Has a backup job open."""

    def __init__(self, description: str) -> None:
        self.description: str | None = description

    def backup_description(self) -> str | None:
        return self.description

    def end_backup(self) -> None:
        self.description = None

    def process_owner(self) -> tuple[int, int]:
        return (64055, 108)


def capture_of(guest: Any, directory: Path, *targets: CaptureTarget) -> BackupCapture:
    directories = Directories(scratch=directory / "scratch", sockets=directory / "s")
    directories.make()
    workspace = directories.of_job(str(uuid.uuid4()))
    return BackupCapture(Plan(guest=guest, targets=targets, workspace=workspace))


def test_somebody_elses_job_is_told_of_before_the_pause(tmp_path: Path) -> None:
    guest = Guest("<domainbackup><server socket='/run/other/nbd'/></domainbackup>")
    with pytest.raises(InstanceBusy, match="another backup"):
        capture_of(guest, tmp_path).prepare()
    assert guest.description is not None


def test_what_qemu_is_to_write_to_is_that_of_the_user_who_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk's owner does not tell who that is: a device's is changed in QEMU's own /dev only."""
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr("os.chown", lambda _path, *owner: owners.append(owner))
    disk = disk_of(str(tmp_path), source_type="block", format="raw")
    guest = Guest("")
    guest.description = None
    target = CaptureTarget(disk=disk, capacity_bytes=1 << 20)
    capture_of(guest, tmp_path, target).prepare()
    assert set(owners) == {(64055, 108)}


def test_a_job_of_ours_that_nobody_remembers_is_ended(tmp_path: Path) -> None:
    guest = Guest(f"<domainbackup><server socket='{tmp_path}/s/0badcafe/nbd'/></domainbackup>")
    capture_of(guest, tmp_path)._require_no_other_job()
    assert guest.description is None
