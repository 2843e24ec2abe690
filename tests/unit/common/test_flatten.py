# SPDX-License-Identifier: Apache-2.0
"""A flattened image is the disk, and what a tenant wrote into an image leads nowhere else.

Images are made, and the whole is judged, by qemu-img; a shelf stands in for Glance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from common import flatten, qemu_img
from common.errors import StillframeError, VerifyFailed
from common.flatten import BrokenChain, ForeignParent, NoRoom, UnsafeImage
from common.glance import Body, ImageService
from tests.unit.common.shelf import MIB, Shelf

SIZE = 4 * MIB
SECRET = b"the host's own secret\n" * 4096
CLUSTER = 1 << 16
TOP, MIDDLE, BOTTOM, GONE = (str(uuid.UUID(int=number)) for number in range(1, 5))


def run(*command: str | Path) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def qcow2(path: Path, *writes: str, size: int = SIZE) -> Path:
    """Make a qcow2 and do to it what qemu-io's commands say."""
    run("qemu-img", "create", "-q", "-f", "qcow2", path, str(size))
    for write in writes:
        run("qemu-io", "-f", "qcow2", "-c", write, path)
    return path


def changed(path: Path, at: int, content: bytes) -> bytes:
    data = path.read_bytes()
    return data[:at] + content + data[at + len(content) :]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A full image of 4 MiB, and two increments on top of each other."""
    shelf = Shelf()
    shelf.put(BOTTOM, qcow2(tmp_path / "bottom", "write -P 1 0 2M"), None)
    shelf.put(MIDDLE, qcow2(tmp_path / "middle", "write -P 2 1M 2M"), BOTTOM)
    shelf.put(TOP, qcow2(tmp_path / "top", "write -P 3 3M 512k", "write -z 0 64k"), MIDDLE)
    return shelf


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host, that no tenant may see."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET.ljust(SIZE, b"\0"))
    return path


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Where temporary files may be; a test's end finds it empty."""
    path = tmp_path / "room"
    path.mkdir(mode=0o777)
    return path


def flattened(shelf: Shelf, room: Path) -> str:
    return flatten.flatten(cast(ImageService, shelf), TOP, room)


def refused(shelf: Shelf, room: Path, kind: type[StillframeError], image_id: str) -> str:
    """Flatten in vain: what is said names the image and no path, and nothing is left."""
    before = dict(shelf.records)
    with pytest.raises(kind) as raised:
        flattened(shelf, room)
    assert raised.type is kind
    assert image_id in raised.value.message
    assert "/" not in raised.value.message
    assert shelf.records == before
    assert list(room.iterdir()) == []
    return raised.value.message


def test_the_whole_is_the_disk(shelf: Shelf, room: Path, tmp_path: Path) -> None:
    new_id = flattened(shelf, room)
    whole = tmp_path / "whole"
    whole.write_bytes(shelf.data[new_id])
    run("qemu-img", "check", "-q", "-f", "qcow2", whole)
    for holds in ("0 0 64k", "1 64k 960k", "2 1M 2M", "3 3M 512k", "0 3584k 512k"):
        run("qemu-io", "-f", "qcow2", "-c", f"read -P {holds}", whole)
    described = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2", whole))
    assert (described["virtual-size"], described.get("backing-filename")) == (SIZE, None)
    properties = shelf.records[new_id].properties
    assert properties["stillframe_flattened_from"] == TOP
    assert properties["stillframe_sha512"] == hashlib.sha512(shelf.data[new_id]).hexdigest()
    assert properties["kept"] == "yes"
    assert "stillframe_parent" not in properties
    assert list(room.iterdir()) == []


def test_nobody_else_can_look_into_the_temporary_files(shelf: Shelf, room: Path) -> None:
    modes: list[int] = []
    shelf.downloading = lambda: modes.append(next(room.iterdir()).stat().st_mode & 0o777)
    flattened(shelf, room)
    assert modes == [0o700] * 3


def test_whatever_ends_it_leaves_neither_files_nor_half_an_image(
    shelf: Shelf, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_image_id: str, _body: Body) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shelf, "upload", interrupted)
    with pytest.raises(KeyboardInterrupt):
        flattened(shelf, room)
    assert set(shelf.records) == {TOP, MIDDLE, BOTTOM}
    assert list(room.iterdir()) == []


# Content: what is uploaded is a tenant's.


def with_raw_backing(path: Path, secret: Path) -> bytes:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", path)
    return path.read_bytes()


def with_data_file(path: Path, secret: Path) -> bytes:
    # Made with a file that qemu-img may write to, then pointed at the other.
    stand_in = path.with_name("x" * len(secret.name))
    options = f"data_file={stand_in},data_file_raw=on"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE))
    return path.read_bytes().replace(bytes(stand_in), bytes(secret))


def raw(_path: Path, secret: Path) -> bytes:
    return secret.read_bytes()


def two_formats_at_once(path: Path, _secret: Path) -> bytes:
    return changed(qcow2(path), 0x8001, b"CD001")


def unknown_feature(path: Path, _secret: Path) -> bytes:
    return changed(qcow2(path), 72, b"\x80")


def cut_off(path: Path, _secret: Path) -> bytes:
    return qcow2(path).read_bytes()[:100]


EVIL = (with_raw_backing, with_data_file, raw, two_formats_at_once, unknown_feature, cut_off)


@pytest.mark.parametrize("image_id", [TOP, BOTTOM])
@pytest.mark.parametrize("evil", EVIL, ids=lambda evil: evil.__name__)
def test_an_image_that_is_no_qcow2_that_stands_alone_is_seen_by_no_qemu_tool(
    shelf: Shelf,
    room: Path,
    tmp_path: Path,
    secret: Path,
    monkeypatch: pytest.MonkeyPatch,
    evil: Callable[[Path, Path], bytes],
    image_id: str,
) -> None:
    ran: list[str] = []
    really = qemu_img.run
    monkeypatch.setattr(
        qemu_img, "run", lambda words, **other: ran.append(words[-1]) or really(words, **other)
    )
    shelf.put(image_id, evil(tmp_path / "evil", secret), MIDDLE if image_id == TOP else None)
    assert "delete it" in refused(shelf, room, UnsafeImage, image_id)
    assert not [path for path in ran if path.endswith(image_id)]


def test_the_attack_would_work_on_qemu_img_itself(tmp_path: Path, secret: Path) -> None:
    """So the tests above do hold something."""
    for evil in (with_raw_backing, with_data_file):
        path = tmp_path / "evil"
        path.write_bytes(evil(path, secret))
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "stolen")
        assert (tmp_path / "stolen").read_bytes().startswith(SECRET)


def test_an_image_of_another_size_does_not_fit(shelf: Shelf, room: Path, tmp_path: Path) -> None:
    shelf.put(MIDDLE, qcow2(tmp_path / "larger", size=SIZE + MIB), BOTTOM)
    assert "virtual size" in refused(shelf, room, BrokenChain, MIDDLE)


def leave(free_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no more room than that."""
    usage = type("Usage", (), {"free": free_bytes})
    monkeypatch.setattr(flatten.shutil, "disk_usage", lambda _: usage)


def bomb(l1_entries: int) -> bytes:
    """Return an image of five clusters that holds 512 MiB of data for each entry."""
    entries = CLUSTER // 8
    size = l1_entries * entries * CLUSTER
    lengths = (0, 0, 16, size, 0, l1_entries, CLUSTER, 2 * CLUSTER, 1, 0, 0, 0, 0, 0, 4, 104)
    clusters = (
        struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, *lengths),
        struct.pack(">Q", 3 * CLUSTER) * l1_entries,
        b"",  # the table of reference counts: all zeros
        struct.pack(">Q", 4 * CLUSTER) * entries,
        b"boom" * (CLUSTER // 4),
    )
    return b"".join(cluster.ljust(CLUSTER, b"\0") for cluster in clusters)


def test_a_small_file_of_much_data_does_not_fill_the_disk(
    shelf: Shelf, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(BOTTOM, bomb(2), None)
    shelf.put(TOP, qcow2(tmp_path / "increment", size=1024 * MIB), BOTTOM)
    leave(512 * MIB, monkeypatch)
    assert "TMPDIR" in refused(shelf, room, NoRoom, TOP)


def test_a_chain_that_does_not_fit_into_the_temporary_directory_is_not_fetched(
    shelf: Shelf, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.downloading = lambda: pytest.fail("it was fetched")
    leave(MIB, monkeypatch)
    refused(shelf, room, NoRoom, TOP)


def test_qemu_img_cannot_write_more_than_was_measured(tmp_path: Path) -> None:
    source = qcow2(tmp_path / "source", "write -P 1 0 32M", size=32 * MIB)
    target = tmp_path / "target"
    qemu_img.convert(
        source, "qcow2", target, "qcow2", most_bytes=qemu_img.measure(source, "qcow2", "qcow2")
    )
    with pytest.raises(qemu_img.QemuImgError):
        qemu_img.convert(source, "qcow2", target, "qcow2", most_bytes=1)


# Bytes: what Glance hashed is what counts.


def other_bytes(shelf: Shelf, image_id: str, data: bytes) -> None:
    """Put other bytes into Glance's store, and their hash into the property."""
    shelf.data[image_id] = data
    shelf.records[image_id].properties["stillframe_sha512"] = hashlib.sha512(data).hexdigest()


def test_a_hash_in_a_property_does_not_stand_for_glance_s_own(
    shelf: Shelf, room: Path, tmp_path: Path
) -> None:
    other = qcow2(tmp_path / "other", "write -P 9 0 2M").read_bytes()
    assert len(other) == len(shelf.data[BOTTOM])
    other_bytes(shelf, BOTTOM, other)
    assert "os_hash_value" in refused(shelf, room, VerifyFailed, BOTTOM)


def test_a_hash_in_a_property_counts_too(shelf: Shelf, room: Path) -> None:
    shelf.records[BOTTOM].properties["stillframe_sha512"] = "0" * 128
    assert "stillframe_sha512" in refused(shelf, room, VerifyFailed, BOTTOM)


@pytest.mark.parametrize("more", [-1, 3 * MIB])
def test_the_size_counts_where_glance_hashes_otherwise(shelf: Shelf, room: Path, more: int) -> None:
    shelf.records[BOTTOM] = dataclasses.replace(shelf.records[BOTTOM], hash_algorithm="md5")
    length = len(shelf.data[BOTTOM]) + more
    other_bytes(shelf, BOTTOM, shelf.data[BOTTOM].ljust(length, b"\0")[:length])
    assert "size" in refused(shelf, room, VerifyFailed, BOTTOM)


# Properties: the chain may lead anywhere.


@pytest.mark.parametrize("owner", ["another project", None])
def test_a_parent_of_another_project_is_not_followed(
    shelf: Shelf, room: Path, owner: str | None
) -> None:
    shelf.downloading = lambda: pytest.fail("it was fetched")
    shelf.records[BOTTOM] = dataclasses.replace(shelf.records[BOTTOM], owner=owner)
    assert "another project" in refused(shelf, room, ForeignParent, BOTTOM)


@pytest.mark.parametrize(
    ("parent", "words"),
    [
        (TOP, "circle"),
        (MIDDLE, "circle"),
        (GONE, "deleted"),
        ("../../etc/passwd", "names no image"),
        ("", "names no image"),
    ],
)
def test_a_parent_that_cannot_be_one_is_refused(
    shelf: Shelf, room: Path, parent: str, words: str
) -> None:
    shelf.records[MIDDLE].properties["stillframe_parent"] = parent
    assert words in refused(shelf, room, BrokenChain, MIDDLE)


def test_a_chain_without_end_is_refused(
    shelf: Shelf, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flatten, "MAX_CHAIN", 2)
    assert "more than 2 images" in refused(shelf, room, BrokenChain, TOP)


@pytest.mark.parametrize(
    ("field", "value"), [("status", "deactivated"), ("disk_format", "raw"), ("disk_format", "vmdk")]
)
def test_an_image_that_is_no_active_qcow2_is_refused(
    shelf: Shelf, room: Path, field: str, value: str
) -> None:
    shelf.records[BOTTOM] = dataclasses.replace(shelf.records[BOTTOM], **{field: value})
    assert value in refused(shelf, room, BrokenChain, BOTTOM)


@pytest.mark.parametrize("also", [(), ("stillframe_chain_length",)])
def test_a_chain_that_somebody_shortened_is_no_whole_one(
    shelf: Shelf, room: Path, also: tuple[str, ...]
) -> None:
    """What the lowest image alone holds would read as zeros."""
    for name in ("stillframe_parent", *also):
        shelf.records[MIDDLE].properties.pop(name)
    said = refused(shelf, room, BrokenChain, MIDDLE if not also else TOP)
    assert "somebody changed stillframe_parent" in said


def test_what_is_no_increment_is_not_flattened(shelf: Shelf, room: Path) -> None:
    for name in ("stillframe_parent", "stillframe_chain_length"):
        shelf.records[TOP].properties.pop(name)
    assert "no increment" in refused(shelf, room, BrokenChain, TOP)


def test_an_image_that_qemu_img_cannot_read_is_told_without_a_path(
    shelf: Shelf, room: Path, tmp_path: Path
) -> None:
    # Its table lies where no cluster begins.
    shelf.put(BOTTOM, changed(qcow2(tmp_path / "broken"), 40, struct.pack(">Q", 1)), None)
    assert "qemu-img" in refused(shelf, room, BrokenChain, TOP)
