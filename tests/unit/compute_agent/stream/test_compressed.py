# SPDX-License-Identifier: Apache-2.0
"""Every compressed image is sound, equal to its disk and as long as promised."""

from __future__ import annotations

import random
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compute_agent.stream.compressed import CompressedLayout, DiskChanged
from compute_agent.stream.extents import CLUSTER_BYTES, full_map
from compute_agent.stream.pump import Paced, Stopped
from compute_agent.stream.qcow2 import Qcow2Layout
from compute_agent.stream.throttle import Throttle
from tests.unit.compute_agent.stream.memory import DIRTY_CONTEXT, MemorySource
from tests.unit.compute_agent.stream.test_qcow2 import (
    assert_equal,
    judged,
    lay_on,
    qemu_img,
    sizes,
    writes,
    written,
)

compressions = st.sampled_from(["zlib", "zstd"])


def noise(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)


def image_of(content: bytes, compression: str) -> bytes:
    """Return the streamed image, having compared its length with the promised one."""
    source = MemorySource(content)
    layout = CompressedLayout.compressed(source, compression)
    image = b"".join(layout.stream(source))
    assert len(image) == layout.length_bytes
    return image


def assert_sound(content: bytes, image: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "disk.raw").write_bytes(content)
        Path(folder, "image.qcow2").write_bytes(image)
        qemu_img("check", "-q", "-f", "qcow2", "image.qcow2", cwd=folder)
        assert_equal("disk.raw", "image.qcow2", folder)


@judged
@given(sizes, writes, compressions)
@example(512, [], "zlib")
@example(CLUSTER_BYTES * 4 + 512, [(512, 1, 7)], "zstd")
def test_a_compressed_image_is_sound_and_equal_to_its_disk(
    size_bytes: int, what: list[tuple[int, int, int]], compression: str
) -> None:
    content = written(size_bytes, what)
    assert_sound(content, image_of(content, compression))


@judged
@given(st.lists(st.sampled_from("zcn"), min_size=1, max_size=24), compressions)
@example(list("ncncnz"), "zlib")
@example(list("nnnn"), "zstd")
def test_clusters_that_shrink_and_that_do_not_lie_together(
    kinds: list[str], compression: str
) -> None:
    """Zeros, text and noise in any order."""
    clusters = {"z": bytes(CLUSTER_BYTES), "c": b"text" * (CLUSTER_BYTES // 4)}
    content = b"".join(
        clusters.get(kind) or noise(CLUSTER_BYTES, at) for at, kind in enumerate(kinds)
    )
    image = image_of(content, compression)
    assert_sound(content, image)
    assert len(image) <= Qcow2Layout(full_map(MemorySource(content))).length_bytes + CLUSTER_BYTES


@judged
@given(sizes, writes, writes, compressions)
@example(CLUSTER_BYTES * 3, [(0, 384, 9)], [(128, 128, 0)], "zlib")
def test_a_compressed_increment_hides_what_reads_as_zeros_now(
    size_bytes: int,
    before: list[tuple[int, int, int]],
    after: list[tuple[int, int, int]],
    compression: str,
) -> None:
    old = written(size_bytes, before)
    new = written(size_bytes, after, on=old)
    dirty = [(start * 512, length * 512) for start, length, _ in after]
    source = MemorySource(new, dirty=dirty)
    layout = CompressedLayout.compressed(source, compression, DIRTY_CONTEXT)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "disk.raw").write_bytes(new)
        Path(folder, "full.qcow2").write_bytes(image_of(old, compression))
        Path(folder, "increment.qcow2").write_bytes(b"".join(layout.stream(source)))
        qemu_img("check", "-q", "-f", "qcow2", "increment.qcow2", cwd=folder)
        lay_on("increment.qcow2", "full.qcow2", folder)
        assert_equal("disk.raw", "increment.qcow2", folder)


def test_allocated_zeros_are_found_and_not_sent() -> None:
    """The block map says data; the first pass sees that there is none."""
    content = bytes(CLUSTER_BYTES * 32)
    source = MemorySource(content, allocated=True)
    layout = CompressedLayout.compressed(source, "zlib")
    assert layout.length_bytes < CLUSTER_BYTES * 8
    assert_sound(content, b"".join(layout.stream(source)))


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_what_shrinks_is_sent_short(compression: str) -> None:
    content = b"a sentence that comes again " * (CLUSTER_BYTES // 2)
    assert len(image_of(content, compression)) < len(content) / 2


def test_a_disk_that_changes_between_the_passes_is_no_image() -> None:
    before, after = b"a" * CLUSTER_BYTES * 4, noise(CLUSTER_BYTES * 4)
    layout = CompressedLayout.compressed(MemorySource(before), "zlib")
    with pytest.raises(DiskChanged):
        list(layout.stream(MemorySource(after)))


def test_the_first_pass_can_be_stopped() -> None:
    stopped = threading.Event()
    stopped.set()
    source = Paced(MemorySource(noise(CLUSTER_BYTES * 64)), Throttle(1000).lease(stopped))
    with pytest.raises(Stopped):
        CompressedLayout.compressed(source, "zlib")
