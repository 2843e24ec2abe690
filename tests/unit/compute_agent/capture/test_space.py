# SPDX-License-Identifier: Apache-2.0
"""Dirty pages are out of the way before a pause, and space is counted by file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import CaptureFailed
from compute_agent.capture import space


def test_each_image_is_flushed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / name) for name in ("vda", "vdb")]
    for path in paths:
        Path(path).touch()
    flushed: list[str] = []
    monkeypatch.setattr(
        space.os, "fsync", lambda fd: flushed.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    space.flush(paths)
    assert flushed == paths * 2


def test_disks_on_one_file_system_share_its_space(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    space.require_space([(tmp_path, free // 2)], 100)
    with pytest.raises(CaptureFailed, match="too little free space"):
        space.require_space([(tmp_path, free * 2 // 3)] * 2, 100)
