# SPDX-License-Identifier: Apache-2.0
"""Zeros that a guest has written are not sent, when looking for them is worth it."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest

from compute_agent.stream import zeros
from compute_agent.stream.extents import CLUSTER_BYTES
from compute_agent.stream.layouts import make_layout
from tests.unit.compute_agent.stream.memory import DIRTY_CONTEXT, MemorySource
from tests.unit.compute_agent.stream.test_qcow2 import assert_equal, lay_on, qemu_img

CLUSTERS = 256


@pytest.fixture(autouse=True)
def _small_disks_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeros, "_WORTH_CLUSTERS", CLUSTERS // 2)


def disk(zero_share: float, tail_bytes: int = 512) -> bytes:
    """Return a disk whose last cluster is a part, so many of its clusters being zeros."""
    dice = random.Random(3)
    clusters = [
        bytes(CLUSTER_BYTES) if dice.random() < zero_share else dice.randbytes(CLUSTER_BYTES)
        for _ in range(CLUSTERS)
    ]
    return b"".join(clusters) + b"\1" * tail_bytes


def images_of(content: bytes) -> tuple[bytes, MemorySource]:
    source = MemorySource(content, allocated=True)
    layout = make_layout(source, disk_format="qcow2")
    image = b"".join(layout.stream(source))
    assert len(image) == layout.length_bytes
    return image, source


def test_a_disk_that_is_mostly_zeros_is_sent_without_them() -> None:
    content = disk(zero_share=0.9)
    image, source = images_of(content)
    assert len(image) < len(content) / 4
    assert sum(length for _, length in source.reads) < 2.5 * len(content)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "disk.raw").write_bytes(content)
        Path(folder, "image.qcow2").write_bytes(image)
        qemu_img("check", "-q", "-f", "qcow2", "image.qcow2", cwd=folder)
        assert_equal("disk.raw", "image.qcow2", folder)


def test_how_far_the_look_for_zeros_is_can_be_seen() -> None:
    told: list[int] = []
    source = MemorySource(disk(zero_share=0.9), allocated=True)
    make_layout(source, disk_format="qcow2", on_progress=lambda one: told.append(one.percent))
    assert told[-1] == 100


def test_a_disk_with_few_zeros_is_read_once_but_for_the_sample() -> None:
    content = disk(zero_share=0.1)
    image, source = images_of(content)
    assert len(image) > len(content)
    read = sum(length for _, length in source.reads)
    assert read <= len(content) + 64 * CLUSTER_BYTES


def test_a_small_disk_is_not_even_sampled() -> None:
    content = bytes(16 * CLUSTER_BYTES)
    _, source = images_of(content)
    assert sum(length for _, length in source.reads) == len(content)


def test_zeros_in_an_increment_hide_what_lies_below() -> None:
    below, content = disk(zero_share=0.0), disk(zero_share=0.9)
    source = MemorySource(content, dirty=[(0, len(content))], allocated=True)
    layout = make_layout(source, disk_format="qcow2", changes=DIRTY_CONTEXT)
    image = b"".join(layout.stream(source))
    assert len(image) < len(content) / 4
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "below.qcow2").write_bytes(images_of(below)[0])
        Path(folder, "disk.raw").write_bytes(content)
        Path(folder, "image.qcow2").write_bytes(image)
        lay_on("image.qcow2", "below.qcow2", folder)
        assert_equal("disk.raw", "image.qcow2", folder)
