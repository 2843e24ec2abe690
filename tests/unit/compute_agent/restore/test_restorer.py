# SPDX-License-Identifier: Apache-2.0
"""A disk made of an image holds the image's data, whatever its format; an increment's too."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from pathlib import Path

import pytest

from common.errors import StillframeError
from common.flatten import BrokenChain, ForeignParent, NoRoom, UnsafeImage
from common.glance import ImageNotFound
from common.states import TaskState
from compute_agent.restore import fetch
from compute_agent.restore.errors import ImageTooLarge, UnusableImage
from compute_agent.restore.model import DiskWish, ProvenImage
from compute_agent.restore.restorer import Restorer
from tests.unit.compute_agent.restore.conftest import Prove
from tests.unit.compute_agent.restore.shelf import (
    MIB,
    SIZE,
    Errand,
    Shelf,
    converted,
    holds,
    qcow2,
    run,
)

WRITES = ("write -P 1 0 1M", "write -P 2 3M 64k")
READS = ("1 0 1M", "0 1M 2M", "2 3M 64k", "0 3136k 960k")
PARENT, BOTTOM = (str(uuid.UUID(int=number)) for number in (2, 3))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return qcow2(tmp_path / "sample", *WRITES)


def described(path: Path, image_format: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        run("qemu-img", "info", "--output=json", "-f", image_format, path)
    )
    return found


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


def increments(shelf: Shelf, tmp_path: Path, **of_the_parent: object) -> None:
    """Put a full image and two increments on each other on the shelf."""
    shelf.put(qcow2(tmp_path / "bottom", "write -P 1 0 2M"), id=BOTTOM)
    middle = qcow2(tmp_path / "middle", "write -P 2 1M 1M")
    shelf.put(middle, id=PARENT, properties={"stillframe_parent": BOTTOM}, **of_the_parent)
    top = qcow2(tmp_path / "top", "write -z 0 64k", "write -P 3 3M 512k")
    shelf.put(top, properties={"stillframe_parent": PARENT})


@pytest.mark.parametrize("target", ["qcow2", "raw"])
def test_an_increment_becomes_one_whole_disk(
    shelf: Shelf,
    prove: Prove,
    restorer: Restorer,
    errand: Errand,
    disks: Path,
    tmp_path: Path,
    target: str,
) -> None:
    increments(shelf, tmp_path)
    proven = prove()
    assert not proven.is_disk
    wish = DiskWish(path=disks / "disk", format=target, size_bytes=SIZE)
    built = restorer.build(errand, proven, wish)
    holds(built.path, target, "0 0 64k", "1 64k 960k", "2 1M 1M", "0 2M 1M", "3 3M 512k")
    assert "backing-filename" not in described(built.path, target)
    _, done, total = errand.told[-1]
    assert done == total == sum(len(data) for data in shelf.data.values())


def test_what_an_increment_lies_on_is_as_hostile(
    shelf: Shelf, prove: Prove, room: Path, tmp_path: Path
) -> None:
    increments(shelf, tmp_path)
    run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        tmp_path / "top",
        tmp_path / "evil",
    )
    shelf.put(tmp_path / "evil", id=BOTTOM)
    with pytest.raises(UnsafeImage, match=f"{BOTTOM}.* names a backing file"):
        prove()
    assert list(room.iterdir()) == []


def test_an_increment_lies_on_nothing_of_another_project(
    shelf: Shelf, prove: Prove, tmp_path: Path
) -> None:
    increments(shelf, tmp_path, owner="another project")
    with pytest.raises(ForeignParent, match=PARENT):
        prove()
    assert not shelf.downloads


def test_an_increment_without_its_parent_is_no_disk(
    shelf: Shelf, prove: Prove, tmp_path: Path
) -> None:
    increments(shelf, tmp_path)
    del shelf.records[PARENT]
    with pytest.raises(BrokenChain, match="deleted"):
        prove()


@pytest.mark.parametrize(
    ("other", "error", "words"),
    [
        ({"status": "queued"}, UnusableImage, "queued, not active"),
        ({"status": "deactivated"}, UnusableImage, "deactivated, not active"),
        ({"container_format": "compressed"}, UnusableImage, "container of format compressed"),
        ({"container_format": "ova"}, UnusableImage, "container of format ova"),
        ({"disk_format": "iso"}, UnusableImage, "format iso"),
        ({"disk_format": None}, UnusableImage, "format None"),
        ({"size_bytes": 0}, UnusableImage, "empty"),
        ({"min_disk_gib": 1}, ImageTooLarge, "asks for a disk of 1 GiB"),
    ],
    ids=lambda value: str(value),
)
def test_a_record_that_forbids_it_is_obeyed_before_anything_is_fetched(
    shelf: Shelf,
    prove: Prove,
    sample: Path,
    other: dict[str, object],
    error: type[StillframeError],
    words: str,
) -> None:
    shelf.put(sample, **other)
    with pytest.raises(error, match=words):
        prove()
    assert not shelf.downloads


def test_an_image_that_is_not_there(prove: Prove) -> None:
    with pytest.raises(ImageNotFound):
        prove()


def test_a_disk_is_never_larger_than_the_operator_allows(
    shelf: Shelf, prove: Prove, tmp_path: Path
) -> None:
    shelf.put(qcow2(tmp_path / "large", size=(1 << 40) + MIB))
    with pytest.raises(ImageTooLarge):
        prove(most_bytes=1 << 50)


def test_a_disk_is_never_shrunk(
    shelf: Shelf, prove: Prove, restorer: Restorer, errand: Errand, disks: Path, sample: Path
) -> None:
    shelf.put(sample)
    wish = DiskWish(path=disks / "disk", format="qcow2", size_bytes=SIZE - 512)
    with pytest.raises(ImageTooLarge, match="never shrunk"):
        restorer.build(errand, prove(), wish)
    assert list(disks.iterdir()) == []


def test_nothing_is_fetched_where_there_is_no_room(
    shelf: Shelf, prove: Prove, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(sample)
    leave(MIB, monkeypatch)
    with pytest.raises(NoRoom, match="too little free space"):
        prove()
    assert not shelf.downloads


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


def leave(free_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": free_bytes})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)


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


def test_progress_is_told_under_the_callers_task_state(
    shelf: Shelf, prove: Prove, errand: Errand, sample: Path
) -> None:
    image = shelf.put(sample)
    prove()
    size = image.size_bytes
    assert errand.told[-1] == (TaskState.REBUILD_BLOCK_DEVICE_MAPPING, size, size)


def bomb(path: Path) -> Path:
    """Make a compressed qcow2 of few bytes that holds a disk of 32 MiB."""
    size = 32 * MIB
    run("qemu-img", "create", "-q", "-f", "qcow2", path, str(size))
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {size}", path)
    return converted(path, "qcow2", "-c")


def test_a_compressed_bomb_is_no_larger_than_the_disk(
    shelf: Shelf, prove: Prove, tmp_path: Path, room: Path
) -> None:
    image = shelf.put(bomb(tmp_path / "bomb"))
    assert (image.size_bytes or 0) < 2 * MIB
    with pytest.raises(ImageTooLarge):
        prove()
    assert list(room.iterdir()) == []


def proof_of(shelf: Shelf, prove: Prove, path: Path) -> ProvenImage:
    shelf.put(path)
    return prove()


def test_damaged_tables_are_seen_by_the_second_opinion(
    shelf: Shelf, prove: Prove, room: Path, sample: Path
) -> None:
    data = bytearray(sample.read_bytes())
    # Two clusters of the guest become one: the entry of the second in the first L2 table.
    l1 = int.from_bytes(data[40:48], "big")
    l2 = int.from_bytes(data[l1 : l1 + 8], "big") & ((1 << 56) - 1) & ~511
    data[l2 + 8 : l2 + 16] = data[l2 : l2 + 8]
    shelf.put(bytes(data))
    with pytest.raises(UnsafeImage, match="tables are damaged"):
        prove()
    assert list(room.iterdir()) == []


def test_a_snapshot_inside_an_image_keeps_it_from_being_the_disk_as_it_is(
    shelf: Shelf, prove: Prove, sample: Path
) -> None:
    run("qemu-img", "snapshot", "-c", "inside", sample)
    assert not proof_of(shelf, prove, sample).is_disk
