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


@pytest.fixture
def third(tmp_path: Path) -> int:
    """A third of what is free, which is so much that others do not matter."""
    return os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize // 3


def test_open_captures_share_the_free_space(tmp_path: Path, third: int) -> None:
    reservations = space.Reservations()
    reservations.take("one", [(tmp_path / "a", third * 2)], 100)
    reservations.take("one", [(tmp_path / "a", third * 2)], 100)
    with pytest.raises(CaptureFailed, match="too little free space"):
        reservations.take("two", [(tmp_path / "b", third * 2)], 100)
    reservations.release("one")
    reservations.release("one")
    reservations.take("two", [(tmp_path / "b", third * 2)], 100)


def test_a_capture_that_is_open_already_keeps_its_room_from_others(
    tmp_path: Path, third: int
) -> None:
    """An agent that goes on with it finds out what there is left; it is not asked whether."""
    reservations = space.Reservations()
    reservations.hold("one", [(tmp_path / "a", third * 6)], 100)
    with pytest.raises(CaptureFailed, match="too little free space"):
        reservations.take("two", [(tmp_path / "b", third)], 100)
    reservations.release("one")
    reservations.take("two", [(tmp_path / "b", third)], 100)


def test_room_that_is_used_already_is_not_counted_twice(
    tmp_path: Path, third: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservations = space.Reservations()
    reservations.take("one", [(tmp_path / "a", third * 2)], 100)
    # As if the file had grown; what is free on the file system stays as it is.
    monkeypatch.setattr(space, "allocated_bytes", lambda _files: third * 2)
    reservations.take("two", [(tmp_path / "b", third * 2)], 100)


def test_what_is_there_already_is_not_what_it_grew_by(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * (1 << 20))
    reservations = space.Reservations()
    reservations.take("one", [(disk, 1 << 20)], 50)
    device = tmp_path.stat().st_dev
    assert reservations._promised()[device] == 1 << 19
    disk.write_bytes(b"x" * (5 << 18))
    os.sync()
    assert reservations._promised()[device] == 1 << 18


def test_only_one_that_took_more_than_its_share_must_leave_the_others_theirs(
    tmp_path: Path,
) -> None:
    mib = 1 << 20
    one, other = tmp_path / "one", tmp_path / "other"
    reservations = space.Reservations()
    reservations.take("one", [(one, 2 * mib), (tmp_path / "its-second", 2 * mib)], 50)
    reservations.take("other", [(other, 8 * mib)], 50)
    one.write_bytes(b"x" * mib)
    other.write_bytes(b"x" * mib)
    os.sync()
    assert reservations.others_bytes("one", tmp_path) == 0
    one.write_bytes(b"x" * 3 * mib)
    os.sync()
    assert reservations.others_bytes("one", tmp_path) == 3 * mib
    assert reservations.others_bytes("other", tmp_path) == 0
    reservations.release("other")
    assert reservations.others_bytes("one", tmp_path) == 0


def test_a_file_system_that_hangs_keeps_nobody_else_from_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservations = space.Reservations()
    reservations.take("one", [(tmp_path / "one", 0)], 50)
    reservations.take("other", [(tmp_path / "other", 1 << 20)], 50)
    looked: list[bool] = []

    def look(_files: object) -> int:
        looked.append(reservations._lock.locked())
        return 0

    monkeypatch.setattr(space, "allocated_bytes", look)
    assert reservations.others_bytes("one", tmp_path) == 1 << 19
    assert looked
    assert not any(looked)


def test_a_file_that_is_gone_takes_no_room(tmp_path: Path) -> None:
    assert space.allocated_bytes([tmp_path / "gone"]) == 0
