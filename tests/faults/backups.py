# SPDX-License-Identifier: Apache-2.0
"""Backups of which one is kept, and what must hold after a fault: the newest whole one is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import requests

from tests.faults import checks
from tests.faults.faults import Scene
from tests.functional.snapshots import Asked, post_action, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

_TYPE = "faulty"
_PUT_RIGHT_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup that was asked for, and those that there were before."""

    scene: Scene
    asked: Asked
    before: frozenset[str]
    directory: Path

    def job(self) -> dict[str, Any]:
        """Return its job as `/v1/jobs` shows it."""
        return self.asked.job()

    def assert_whole(self, where: str) -> None:
        """The guest runs on; the new backup alone is there, whole, or what was there still is."""
        guest = self.asked.guest
        checks.assert_runs(guest, where)
        checks.assert_whole_or_gone(self.asked, self.directory, where)
        checks.assert_untouched(self.asked.cloud, guest, where)
        wait_for(self._is_rotated, f"one backup, the newest ({where})", _PUT_RIGHT_S)

    def _is_rotated(self) -> bool:
        job = self.job()
        kept = {job["image_id"]} if job["state"] == "done" else self.before
        return backups_of(self.asked.cloud, self.asked.guest) == kept


def ask_for_backup(cloud: Cloud, guest: Guest, directory: Path) -> Backup:
    """Ask for a backup that takes the place of the one before."""
    before = backups_of(cloud, guest)
    body = {"createBackup": {"name": "kept", "backup_type": _TYPE, "rotation": 1}}
    answer = post_action(cloud, guest, body)
    assert answer.status_code == requests.codes.accepted, answer.text
    return Backup(
        scene=Scene(cloud, guest),
        asked=Asked(cloud, guest, answer.json()["image_id"]),
        before=before,
        directory=directory,
    )


def backups_of(cloud: Cloud, guest: Guest) -> frozenset[str]:
    """Return the ids of the backups of a guest that Glance has, whatever their status."""
    url = f"{cloud.glance.endpoint}/v2/images"
    query = {"backup_type": _TYPE, "instance_uuid": guest.uuid}
    images = requests.get(url, query, timeout=10).json()["images"]
    return frozenset(image["id"] for image in images)
