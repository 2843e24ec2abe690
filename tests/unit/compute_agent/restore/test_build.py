# SPDX-License-Identifier: Apache-2.0
"""A disk holds what its image does; where it cannot be made, nothing is left of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from common import qemu_img
from common.errors import JobCancelled, StillframeError
from common.flatten import NoRoom
from compute_agent.restore.errors import ImageTooLarge
from compute_agent.restore.model import DiskWish
from compute_agent.restore.restorer import Restorer
from tests.unit.compute_agent.restore.conftest import Prove
from tests.unit.compute_agent.restore.shelf import (
    MIB,
    READS,
    SIZE,
    Errand,
    Shelf,
    converted,
    described,
    holds,
    leave,
)


@pytest.mark.parametrize(
    ("disk_format", "options", "target", "is_disk"),
    [
        ("qcow2", (), "qcow2", True),
        ("qcow2", (), "raw", True),
        ("qcow2", ("-c",), "qcow2", False),
        ("raw", (), "raw", True),
        ("raw", (), "qcow2", True),
        ("vmdk", (), "qcow2", False),
        ("vmdk", ("-o", "subformat=streamOptimized"), "raw", False),
        ("vdi", (), "qcow2", False),
        ("vhd", ("-o", "force_size=on"), "qcow2", False),
        ("vhdx", (), "raw", False),
    ],
    ids=str,
)
def test_a_disk_holds_what_its_image_does(
    shelf: Shelf,
    prove: Prove,
    restorer: Restorer,
    errand: Errand,
    disks: Path,
    sample: Path,
    disk_format: str,
    options: tuple[str, ...],
    target: str,
    is_disk: bool,
) -> None:
    made = converted(sample, {"vhd": "vpc"}.get(disk_format, disk_format), *options)
    shelf.put(made, disk_format)
    proven = prove()
    assert (proven.virtual_bytes, proven.is_disk) == (SIZE, is_disk)
    built = restorer.build(
        errand, proven, DiskWish(path=disks / "disk", format=target, size_bytes=2 * SIZE)
    )
    holds(built.path, target, *READS, "0 4M 4M")
    found = described(built.path, target)
    assert (found["virtual-size"], found.get("backing-filename")) == (2 * SIZE, None)
    assert [path.name for path in disks.iterdir()] == ["disk"]
    # What was fetched is used up: moved, or removed once it was converted.
    assert not proven.path.exists()


def test_what_can_be_the_disk_is_moved_and_its_zeros_take_no_space(
    shelf: Shelf, prove: Prove, restorer: Restorer, errand: Errand, disks: Path, sample: Path
) -> None:
    shelf.put(converted(sample, "raw"), "raw")
    proven = prove()
    inode = proven.path.stat().st_ino
    wish = DiskWish(path=disks / "disk", format="raw", size_bytes=SIZE, mode=0o640)
    restorer.build(errand, dataclasses.replace(proven), wish)
    status = wish.path.stat()
    assert (status.st_ino, status.st_size, status.st_mode & 0o777) == (inode, SIZE, 0o640)
    assert status.st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("base_format", ["raw", "qcow2"])
def test_a_disk_can_lie_on_a_base(
    shelf: Shelf,
    prove: Prove,
    restorer: Restorer,
    errand: Errand,
    disks: Path,
    sample: Path,
    base_format: str,
) -> None:
    shelf.put(sample)
    wish = DiskWish(
        path=disks / "disk",
        format="qcow2",
        size_bytes=2 * SIZE,
        owner=(os.getuid(), os.getgid()),
        base_path=disks / "base",
        base_format=base_format,
    )
    built = restorer.build(errand, prove(), wish)
    holds(built.path, "qcow2", *READS, "0 4M 4M")
    found = described(built.path, "qcow2")
    assert found["virtual-size"] == 2 * SIZE
    assert (found["backing-filename"], found["backing-filename-format"]) == (
        str(built.base_path),
        base_format,
    )
    assert described(disks / "base", base_format)["virtual-size"] == SIZE


def test_a_disk_is_never_shrunk(
    shelf: Shelf, prove: Prove, restorer: Restorer, errand: Errand, disks: Path, sample: Path
) -> None:
    shelf.put(sample)
    wish = DiskWish(path=disks / "disk", format="qcow2", size_bytes=SIZE - 512)
    with pytest.raises(ImageTooLarge, match="never shrunk"):
        restorer.build(errand, prove(), wish)
    assert list(disks.iterdir()) == []


def test_nothing_is_built_where_there_is_no_room(
    shelf: Shelf,
    prove: Prove,
    restorer: Restorer,
    errand: Errand,
    disks: Path,
    sample: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf.put(sample)
    proven = prove()
    leave(2 * MIB, monkeypatch)
    with pytest.raises(NoRoom):
        restorer.build(errand, proven, DiskWish(path=disks / "disk", format="raw", size_bytes=SIZE))
    assert list(disks.iterdir()) == []


def test_what_exists_is_neither_overwritten_nor_removed(
    shelf: Shelf, prove: Prove, restorer: Restorer, errand: Errand, disks: Path, sample: Path
) -> None:
    shelf.put(sample)
    (disks / "disk").write_bytes(b"somebody's")
    proven = prove()
    with pytest.raises(FileExistsError):
        restorer.build(
            errand, proven, DiskWish(path=disks / "disk", format="qcow2", size_bytes=SIZE)
        )
    assert (disks / "disk").read_bytes() == b"somebody's"


def test_a_build_that_fails_at_its_end_leaves_nothing(
    shelf: Shelf, prove: Prove, restorer: Restorer, errand: Errand, disks: Path, sample: Path
) -> None:
    shelf.put(sample)
    proven = prove()
    errand.stopped.set()
    wish = DiskWish(
        path=disks / "disk", format="qcow2", size_bytes=SIZE, base_path=disks / "base",
        base_format="qcow2",
    )  # fmt: skip
    with pytest.raises(StillframeError, match="cancelled"):
        restorer.build(errand, proven, wish)
    assert list(disks.iterdir()) == []


def test_a_stop_ends_a_conversion(
    shelf: Shelf,
    prove: Prove,
    restorer: Restorer,
    errand: Errand,
    disks: Path,
    sample: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf.put(sample)
    proven = prove()
    really = qemu_img.run

    def stopped_while_it_runs(arguments: list[str], **other: Any) -> str:
        if arguments[0] == "convert":
            errand.stopped.set()
            # In its place, what runs for hours.
            arguments = ["bench", "-f", "qcow2", "-c", "1000000000", str(sample)]
        return really(arguments, **other)

    monkeypatch.setattr(qemu_img, "run", stopped_while_it_runs)
    with pytest.raises(JobCancelled):
        restorer.build(errand, proven, DiskWish(path=disks / "disk", format="raw", size_bytes=SIZE))
    assert list(disks.iterdir()) == []
