# SPDX-License-Identifier: Apache-2.0
"""What a tenant writes into an image leads nowhere: refused, and seen by no qemu tool.

The images are made by qemu-img, then spoilt.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from common import qemu_img
from common.errors import StillframeError
from common.flatten import UnsafeImage
from compute_agent.restore.errors import ImageTooLarge, UnusableImage
from tests.unit.compute_agent.restore.conftest import Prove
from tests.unit.compute_agent.restore.shelf import (
    IMAGE,
    MIB,
    SIZE,
    Shelf,
    converted,
    qcow2,
    run,
)

SECRET = b"the host's own secret\n" * 4096
CLUSTER = 1 << 16

Maker = Callable[[Path, Path], bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Evil:
    """One image of the corpus: how it is made, what it claims, what is said about it."""

    make: Maker
    words: str
    disk_format: str = "qcow2"
    error: type[StillframeError] = UnsafeImage

    def __str__(self) -> str:
        return f"{self.make.__name__}-{self.disk_format}"


def changed(path: Path, at: int, content: bytes) -> bytes:
    data = path.read_bytes()
    return data[:at] + content + data[at + len(content) :]


def backing_file(path: Path, secret: Path) -> bytes:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", path)
    return path.read_bytes()


def backing_passwd(path: Path, _secret: Path) -> bytes:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path)
    return path.read_bytes()


def json_backing(path: Path, secret: Path) -> bytes:
    words = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(secret)}})
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", f"json:{words}", path)
    return path.read_bytes()


def data_file(path: Path, secret: Path) -> bytes:
    # Made with a file that qemu-img may write to, then pointed at the other.
    stand_in = path.with_name("x" * len(secret.name))
    options = f"data_file={stand_in},data_file_raw=on"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE))
    return path.read_bytes().replace(bytes(stand_in), bytes(secret))


def really_raw(_path: Path, secret: Path) -> bytes:
    return secret.read_bytes()


def really_qcow2(path: Path, secret: Path) -> bytes:
    return backing_file(path, secret)


def vmdk_of_flat_files(path: Path, _secret: Path) -> bytes:
    converted(qcow2(path), "vmdk", "-o", "subformat=monolithicFlat")
    return path.with_name(f"{path.name}.vmdk").read_bytes()


def vmdk_of_the_secret(_path: Path, secret: Path) -> bytes:
    sectors = SIZE // 512
    lines = (
        "# Disk DescriptorFile",
        "version=1",
        "CID=fffffffe",
        "parentCID=ffffffff",
        'createType="monolithicFlat"',
        f'RW {sectors} FLAT "{secret}" 0',
    )
    return "\n".join(lines).encode().ljust(1024, b"\n")


def sparse_vmdk(path: Path, old: bytes, new: bytes) -> bytes:
    """Change the descriptor of a sound VMDK."""
    data = converted(qcow2(path), "vmdk").read_bytes()
    at = data.index(b"# Disk DescriptorFile")
    descriptor = data[at : data.index(b"\0", at)]
    assert old in descriptor
    other = descriptor.replace(old, new).ljust(len(descriptor), b"\0")
    spare = len(other) - len(descriptor)
    assert not data[at + len(descriptor) : at + len(other)].strip(b"\0")
    return data[:at] + other + data[at + len(descriptor) + spare :]


def vmdk_with_a_parent(path: Path, secret: Path) -> bytes:
    hint = b'parentFileNameHint="%s"\ncreateType' % bytes(secret)
    return sparse_vmdk(path, b"createType", hint)


def vmdk_of_two_types(path: Path, _secret: Path) -> bytes:
    new = b'CREATETYPE="monolithicSparse"\ncreateType="monolithicFlat"'
    return sparse_vmdk(path, b'createType="monolithicSparse"', new)


def vmdk_of_another_type(path: Path, _secret: Path) -> bytes:
    return sparse_vmdk(path, b"monolithicSparse", b"twoGbMaxExtentSparse")


def vmdk_with_an_extent_elsewhere(path: Path, secret: Path) -> bytes:
    return sparse_vmdk(path, b"RW ", b'RW 8 FLAT "%s" 0\nRW ' % bytes(secret))


def luks(_path: Path, _secret: Path) -> bytes:
    # The header only: qemu-img takes seconds to make up a key.
    return b"LUKS\xba\xbe\0\1aes".ljust(SIZE, b"\0")


def qcow2_with(at: int, content: bytes, name: str) -> Maker:
    """Make a qcow2 with something else in its header."""

    def make(path: Path, _secret: Path) -> bytes:
        return changed(qcow2(path), at, content)

    make.__name__ = name
    return make


def l1_of_a_gigabyte(path: Path, _secret: Path) -> bytes:
    return changed(qcow2(path), 36, struct.pack(">I", (1 << 30) // 8))


def sixteen_exbibytes(path: Path, _secret: Path) -> bytes:
    return changed(qcow2(path), 24, struct.pack(">Q", (1 << 64) - 512))


def larger_than_the_disk(path: Path, _secret: Path) -> bytes:
    return qcow2(path, size=SIZE + MIB).read_bytes()


def cut_in_its_header(path: Path, _secret: Path) -> bytes:
    return qcow2(path).read_bytes()[:100]


def cut_in_its_tables(path: Path, _secret: Path) -> bytes:
    return qcow2(path).read_bytes()[: CLUSTER + 512]


def iso_and_raw(_path: Path, _secret: Path) -> bytes:
    data = bytearray(SIZE)
    data[0x8000:0x8006] = b"\x01CD001"
    return bytes(data)


def iso_and_qcow2(path: Path, _secret: Path) -> bytes:
    return changed(qcow2(path), 0x8001, b"CD001")


def qed(path: Path, _secret: Path) -> bytes:
    return b"QED\0".ljust(SIZE, b"\0")


def spoilt(name: str, offset: int, content: bytes) -> Maker:
    """Make an image of another format, with something else in its header."""

    def make(path: Path, _secret: Path) -> bytes:
        return changed(converted(qcow2(path), name), offset, content)

    make.__name__ = f"spoilt_{name}"
    return make


CORPUS = (
    Evil(backing_file, "names a backing file"),
    Evil(backing_passwd, "names a backing file"),
    Evil(json_backing, "names a backing file"),
    Evil(data_file, "names an external data file"),
    Evil(really_raw, "not the qcow2 that it claims"),
    Evil(really_qcow2, "is qcow2, not the raw", "raw"),
    Evil(really_qcow2, "not the vmdk that it claims", "vmdk"),
    Evil(vmdk_of_flat_files, "of another type", "vmdk"),
    Evil(vmdk_of_the_secret, "of another type", "vmdk"),
    Evil(vmdk_with_a_parent, "names a parent", "vmdk"),
    Evil(vmdk_of_two_types, "several types", "vmdk"),
    Evil(vmdk_of_another_type, "of another type", "vmdk"),
    Evil(vmdk_with_an_extent_elsewhere, "names other files", "vmdk"),
    Evil(luks, "is luks, not the raw", "raw"),
    Evil(luks, "format luks", "luks", UnusableImage),
    Evil(qcow2_with(32, struct.pack(">I", 2), "encrypted"), "it is encrypted"),
    Evil(l1_of_a_gigabyte, "L1 table is too large"),
    Evil(sixteen_exbibytes, "L1 table is too small"),
    Evil(larger_than_the_disk, "room for", error=ImageTooLarge),
    Evil(cut_in_its_header, "not the qcow2"),
    Evil(cut_in_its_tables, "beyond its end"),
    Evil(iso_and_raw, "is iso, not the raw", "raw"),
    Evil(iso_and_qcow2, "several formats"),
    Evil(qed, "format qed", "qed", UnusableImage),
    Evil(qed, "is qed, not the raw", "raw"),
    Evil(qcow2_with(4, struct.pack(">I", 9), "unknown_version"), "not known"),
    Evil(qcow2_with(20, struct.pack(">I", 40), "endless_clusters"), "cannot be"),
    Evil(qcow2_with(72, b"\x80", "unknown_feature"), "not known"),
    Evil(qcow2_with(79, b"\x02", "marked_as_corrupt"), "marked as corrupt"),
    Evil(qcow2_with(56, struct.pack(">I", 1 << 16), "refcounts_of_4_gib"), "reference counts"),
    Evil(qcow2_with(100, struct.pack(">I", 1 << 30), "header_of_a_gigabyte"), "too long"),
    Evil(qcow2_with(40, struct.pack(">Q", 1 << 62), "l1_far_away"), "beyond its end"),
    Evil(qcow2_with(24, bytes(8), "no_size"), "no size"),
    Evil(spoilt("vdi", 0x40, b"oops"), "not the vdi", "vdi"),
    Evil(spoilt("vdi", 0x170, bytes(8)), "no size", "vdi"),
    Evil(spoilt("vpc", 0, b"oops"), "not the vhd", "vhd"),
    Evil(spoilt("vhdx", 0, b"oops"), "not the vhdx", "vhdx"),
    Evil(spoilt("vhdx", 0x30000, b"oops"), "not the vhdx", "vhdx"),
    Evil(spoilt("vmdk", 4, b"oops"), "not the vmdk", "vmdk"),
    Evil(spoilt("vmdk", 28, b"oops"), "not the vmdk", "vmdk"),
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host, that no tenant may see."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET.ljust(SIZE, b"\0"))
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of every qemu-img that ran on behalf of the code."""
    seen: list[str] = []
    really = qemu_img.run
    monkeypatch.setattr(
        qemu_img, "run", lambda words, **other: seen.extend(words) or really(words, **other)
    )
    return seen


@pytest.mark.parametrize("evil", CORPUS, ids=str)
def test_it_is_refused_before_any_qemu_tool_sees_it(
    evil: Evil,
    shelf: Shelf,
    prove: Prove,
    room: Path,
    tmp_path: Path,
    secret: Path,
    seen: list[str],
) -> None:
    shelf.put(evil.make(tmp_path / "evil", secret), evil.disk_format)
    with pytest.raises(evil.error) as raised:
        prove()
    assert raised.type is evil.error
    assert evil.words in raised.value.message
    assert IMAGE in raised.value.message
    assert "/" not in raised.value.message
    assert list(room.iterdir()) == []
    assert seen == []


def test_the_attack_would_work_on_qemu_img_itself(tmp_path: Path, secret: Path) -> None:
    """So the tests above do hold something."""
    for make in (backing_file, json_backing, data_file):
        path = tmp_path / "evil"
        path.write_bytes(make(path, secret))
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "stolen")
        assert (tmp_path / "stolen").read_bytes().startswith(SECRET)
    path.write_bytes(vmdk_of_the_secret(path, secret))
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, tmp_path / "stolen")
    assert (tmp_path / "stolen").read_bytes().startswith(SECRET)
