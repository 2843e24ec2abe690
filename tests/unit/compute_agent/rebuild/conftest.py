# SPDX-License-Identifier: Apache-2.0
"""A rebuild of a played guest on files that are real."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import qemu_img
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.rebuild import Rebuilds
from tests.unit.compute_agent.rebuild.scene import OLD, SETTINGS, Scene, new_job
from tests.unit.compute_agent.stage import tools_of


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    disk = tmp_path / "disks" / "vm"
    disk.parent.mkdir()
    disk.write_bytes(OLD)
    scene = Scene(disk)
    info = qemu_img.ImageInfo(path=str(disk), format="raw", virtual_bytes=1, actual_bytes=1)
    monkeypatch.setattr(qemu_img, "info", lambda *_: info)
    return scene


@pytest.fixture
def rebuilds(scene: Scene, journal: Journal, tmp_path: Path) -> Rebuilds:
    tools = tools_of(scene, journal, tmp_path)
    return Rebuilds(tools, SETTINGS)


@pytest.fixture
def job(journal: Journal) -> Job:
    return new_job(journal)
