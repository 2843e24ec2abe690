# SPDX-License-Identifier: Apache-2.0
"""Every image that the writer makes is sound and equal to its disk: qemu-img judges."""

from __future__ import annotations

import json
import subprocess
import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compute_agent.stream.extents import CLUSTER_BYTES, ClusterMap, Runs, full_map, increment_map
from compute_agent.stream.qcow2 import Qcow2Layout
from compute_agent.stream.raw import RawLayout
from tests.unit.compute_agent.stream.memory import DIRTY_CONTEXT, MemorySource

GIB = 1 << 30
TIB = 1 << 40

#: (start, length, byte) of what is written to a disk, in sectors.
writes = st.lists(
    st.tuples(st.integers(0, 2400), st.integers(1, 300), st.integers(0, 255)), max_size=8
)
#: Up to 1.2 MiB: several clusters, mostly not a whole number of them.
sizes = st.integers(1, 2400).map(lambda sectors: sectors * 512)

judged = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def written(size_bytes: int, what: list[tuple[int, int, int]], on: bytes = b"") -> bytes:
    content = bytearray(on.ljust(size_bytes, b"\0")[:size_bytes])
    for start, length, byte in what:
        begin, end = start * 512, min((start + length) * 512, size_bytes)
        content[begin:end] = bytes([byte]) * max(0, end - begin)
    return bytes(content)


def image_of(layout: Qcow2Layout | RawLayout, source: MemorySource) -> bytes:
    """Return the streamed image, having compared its length with the promised one."""
    image = b"".join(layout.stream(source))
    assert len(image) == layout.length_bytes
    assert sum(length for _, length in source.reads) == layout.data_bytes
    return image


def qemu_img(*arguments: str, cwd: str) -> str:
    done = subprocess.run(
        ["qemu-img", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_equal(raw: str, image: str, folder: str) -> None:
    """Same size, same content; that zeros are holes in one of them makes no difference."""
    qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", raw, image, cwd=folder)
    described = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", image, cwd=folder))
    assert described["virtual-size"] == Path(folder, raw).stat().st_size


def lay_on(image: str, parent: str, folder: str) -> None:
    """Tie an increment to its parent, as a flatten does."""
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", parent, image, cwd=folder)


@judged
@given(sizes, writes)
@example(512, [])
@example(CLUSTER_BYTES, [(0, 128, 7)])
@example(CLUSTER_BYTES * 4 + 512, [(512, 1, 7)])
def test_an_image_is_sound_and_equal_to_its_disk(
    size_bytes: int, what: list[tuple[int, int, int]]
) -> None:
    content = written(size_bytes, what)
    source = MemorySource(content)
    image = image_of(Qcow2Layout(full_map(source)), source)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "disk.raw").write_bytes(content)
        Path(folder, "image.qcow2").write_bytes(image)
        qemu_img("check", "-q", "-f", "qcow2", "image.qcow2", cwd=folder)
        assert_equal("disk.raw", "image.qcow2", folder)


@judged
@given(sizes, writes, writes)
@example(CLUSTER_BYTES * 3, [(0, 384, 9)], [(128, 128, 0)])
def test_an_increment_laid_on_its_parent_is_equal_to_the_later_disk(
    size_bytes: int, before: list[tuple[int, int, int]], after: list[tuple[int, int, int]]
) -> None:
    old = written(size_bytes, before)
    new = written(size_bytes, after, on=old)
    full, increment = (
        MemorySource(old),
        MemorySource(new, dirty=[(start * 512, length * 512) for start, length, _ in after]),
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "disk.raw").write_bytes(new)
        Path(folder, "full.qcow2").write_bytes(image_of(Qcow2Layout(full_map(full)), full))
        layout = Qcow2Layout(increment_map(increment, DIRTY_CONTEXT))
        Path(folder, "increment.qcow2").write_bytes(image_of(layout, increment))
        qemu_img("check", "-q", "-f", "qcow2", "increment.qcow2", cwd=folder)
        lay_on("increment.qcow2", "full.qcow2", folder)
        assert_equal("disk.raw", "increment.qcow2", folder)


def test_data_far_out_on_a_huge_disk_is_found_again(tmp_path: Path) -> None:
    """16 TiB with one cluster at each end: three tables, not gigabytes of them."""
    last = 16 * TIB // CLUSTER_BYTES - 1
    layout = Qcow2Layout(ClusterMap(16 * TIB, Runs([(0, 1), (last, 1)])))
    source = Patterned(16 * TIB)
    (tmp_path / "image.qcow2").write_bytes(b"".join(layout.stream(source)))
    assert layout.length_bytes < 1 << 20
    qemu_img("check", "-q", "-f", "qcow2", "image.qcow2", cwd=str(tmp_path))
    read = subprocess.run(
        [
            *("qemu-io", "-r", "-f", "qcow2", "-c", f"read -P 165 {last * CLUSTER_BYTES} 64k"),
            *("-c", "read -P 165 0 64k", "-c", "read -P 0 64k 64k", "image.qcow2"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "verification failed" not in read.stdout


@judged
@given(st.sets(st.integers(0, 64 * GIB // CLUSTER_BYTES - 1), min_size=1, max_size=40))
@example({0, 1, 8191, 8192, 8193, 64 * GIB // CLUSTER_BYTES - 1})
def test_single_clusters_all_over_a_large_disk_are_where_they_were(numbers: set[int]) -> None:
    """Many tables of 512 MiB each, most of them with a single entry."""
    layout = Qcow2Layout(ClusterMap(64 * GIB, Runs((number, 1) for number in sorted(numbers))))
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.qcow2")
        image.write_bytes(b"".join(layout.stream(Numbered(64 * GIB))))
        assert image.stat().st_size == layout.length_bytes
        qemu_img("check", "-q", "-f", "qcow2", "image.qcow2", cwd=folder)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", "image.qcow2", "back.raw", cwd=folder)
        extents = json.loads(qemu_img("map", "--output=json", "image.qcow2", cwd=folder))
        held = sum(extent["length"] for extent in extents if extent["data"])
        assert held == len(numbers) * CLUSTER_BYTES
        with Path(folder, "back.raw").open("rb") as back:
            for number in numbers:
                back.seek(number * CLUSTER_BYTES)
                assert back.read(CLUSTER_BYTES) == Numbered.cluster(number)


def test_a_virtual_size_of_odd_bytes_is_rounded_up_to_sectors(tmp_path: Path) -> None:
    source = MemorySource(b"q" * (CLUSTER_BYTES + 1001))
    layout = Qcow2Layout(full_map(source))
    (tmp_path / "image.qcow2").write_bytes(image_of(layout, source))
    assert layout.virtual_bytes == CLUSTER_BYTES + 1024
    qemu_img("check", "-q", "-f", "qcow2", "image.qcow2", cwd=str(tmp_path))
    qemu_img("convert", "-f", "qcow2", "-O", "raw", "image.qcow2", "back.raw", cwd=str(tmp_path))
    back = (tmp_path / "back.raw").read_bytes()
    assert back == (b"q" * (CLUSTER_BYTES + 1001)).ljust(layout.virtual_bytes, b"\0")


def test_the_tables_of_a_large_disk_never_stand_in_memory_together() -> None:
    """A full disk of 4 TiB has 512 MiB of L2 tables; making some takes a few clusters."""
    clusters = 4 * TIB // CLUSTER_BYTES
    layout = Qcow2Layout(ClusterMap(4 * TIB, Runs([(0, clusters)])))
    tables_bytes = layout.length_bytes - layout.data_bytes
    stream = layout.stream(Patterned(4 * TIB))
    tracemalloc.start()
    try:
        seen = 0
        while seen < 24 << 20:
            seen += len(next(stream))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tables_bytes > 512 << 20
    assert peak < 8 << 20


@given(sizes, writes)
def test_a_raw_image_is_the_disk_itself(size_bytes: int, what: list[tuple[int, int, int]]) -> None:
    source = MemorySource(written(size_bytes, what))
    assert image_of(RawLayout.of(source), source) == written(size_bytes, what)


class Patterned(MemorySource):
    """A disk of any size that reads as 0xA5 throughout."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(b"")
        self.size_bytes = size_bytes

    def read_in_order(self, pieces: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
        for _, length in pieces:
            yield bytearray(b"\xa5" * length)


class Numbered(Patterned):
    """A disk of any size whose clusters each hold their own number, all over."""

    @staticmethod
    def cluster(number: int) -> bytes:
        return (number + 1).to_bytes(8, "big") * (CLUSTER_BYTES // 8)

    def read_in_order(self, pieces: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
        for offset, length in pieces:
            first = offset // CLUSTER_BYTES
            held = range(first, first + length // CLUSTER_BYTES)
            yield bytearray(b"".join(self.cluster(number) for number in held))
