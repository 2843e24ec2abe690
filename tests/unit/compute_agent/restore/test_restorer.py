# SPDX-License-Identifier: Apache-2.0
"""What is proven is sound: by its record, by its content, by qemu-img; increments too."""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import cast

import pytest

from common.errors import StillframeError
from common.flatten import BrokenChain, ForeignParent, NoRoom, UnsafeImage
from common.glance import ImageNotFound, ImageService
from common.states import TaskState
from compute_agent.restore.errors import ImageTooLarge, UnusableImage
from compute_agent.restore.model import DiskWish, ProvenImage
from compute_agent.restore.restorer import Restorer
from compute_agent.stream.throttle import Throttle
from tests.unit.compute_agent.restore.conftest import Prove
from tests.unit.compute_agent.restore.shelf import (
    IMAGE,
    MIB,
    SETTINGS,
    SIZE,
    Errand,
    Shelf,
    converted,
    described,
    holds,
    leave,
    qcow2,
    run,
)

PARENT, BOTTOM = (str(uuid.UUID(int=number)) for number in (2, 3))


@pytest.mark.parametrize("boot_flag", [0x80, 0x77])
def test_a_partition_table_is_raw_whatever_the_guest_wrote_into_it(
    shelf: Shelf, prove: Prove, boot_flag: int
) -> None:
    disk = bytearray(SIZE)
    disk[446:462] = bytes([boot_flag, 0, 2, 0, 0x83, 0, 2, 0, 1, 0, 0, 0, 9, 0, 0, 0])
    disk[510:512] = b"\x55\xaa"
    shelf.put(bytes(disk), "raw")
    proven = prove()
    assert (proven.format, proven.is_disk) == ("raw", True)
    assert proven.path.read_bytes() == disk


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
        ({"virtual_bytes": SIZE + 1}, ImageTooLarge, f"holds a disk of {SIZE + 1} bytes"),
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


def test_a_disk_with_lazy_counts_is_made_anew(shelf: Shelf, prove: Prove, tmp_path: Path) -> None:
    path = tmp_path / "lazy"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, str(SIZE))
    shelf.put(path)
    assert not prove().is_disk


def test_what_one_restore_was_promised_is_not_there_for_another(
    shelf: Shelf,
    prove: Prove,
    restorer: Restorer,
    errand: Errand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of the first is written yet when the second looks at the free space."""
    shelf.put(bytes(2 * MIB), "raw")
    shelf.put(bytes(2 * MIB), "raw", id=PARENT)
    leave(SETTINGS.min_free_bytes + 3 * MIB, monkeypatch)

    def other() -> None:
        directory = tmp_path / "other room"
        directory.mkdir(exist_ok=True)
        restorer.prove(errand, PARENT, directory, most_bytes=SIZE, task_state=None)

    refused = []

    def amid_the_first(_number: int) -> None:
        shelf.passing = lambda _: None
        with pytest.raises(NoRoom, match="try again later"):
            other()
        refused.append(PARENT)

    shelf.passing = amid_the_first
    prove()
    assert refused == [PARENT]
    other()


def test_nothing_is_fetched_where_there_is_no_room(
    shelf: Shelf, prove: Prove, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(sample)
    leave(MIB, monkeypatch)
    with pytest.raises(NoRoom, match="too little free space"):
        prove()
    assert not shelf.downloads


def test_an_image_that_takes_qemu_img_too_much_is_refused(
    shelf: Shelf, errand: Errand, room: Path, tmp_path: Path
) -> None:
    # Not even qemu-img itself fits into that.
    settings = dataclasses.replace(SETTINGS, qemu_img_memory_bytes=32 * MIB)
    shelf.put(qcow2(tmp_path / "sound"))
    restorer = Restorer(cast(ImageService, shelf), Throttle(0), settings)
    with pytest.raises(UnsafeImage, match="more time or space"):
        restorer.prove(errand, IMAGE, room, most_bytes=SIZE, task_state=None)
    assert list(room.iterdir()) == []


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
