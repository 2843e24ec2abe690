# SPDX-License-Identifier: Apache-2.0
"""qemu-img keeps within its limits, and is not left running when nobody waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from oslo_concurrency import processutils

from common import qemu_img
from common.qemu_img import QemuImgError


@pytest.fixture
def for_ever(tmp_path: Path) -> list[str]:
    """What keeps qemu-img reading for hours."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    return ["bench", "-f", "raw", "-c", "1000000000", str(image)]


def running(tmp_path: Path) -> Iterator[int]:
    """Yield the ids of the processes that have this test's image in their command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if os.fsencode(tmp_path) in (entry / "cmdline").read_bytes():
                    yield int(entry.name)
            except OSError:
                continue


def test_one_whose_time_is_up_is_killed(for_ever: list[str], tmp_path: Path) -> None:
    with pytest.raises(QemuImgError, match="while reading"):
        qemu_img.run(for_ever, doing="reading", timeout_s=1)
    assert not list(running(tmp_path))


def test_one_that_is_told_to_stop_is_killed(for_ever: list[str], tmp_path: Path) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(QemuImgError, match="while reading"):
        qemu_img.run(for_ever, doing="reading", stopped=stopped)
    assert not list(running(tmp_path))


def test_its_threads_take_a_small_part_of_the_memory_that_it_may_have(tmp_path: Path) -> None:
    # The tightest limit that [restore] qemu_img_memory takes; the default is four times that.
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(32 << 20))
    for _ in range(4):
        qemu_img.run(
            ["convert", "-q", "-f", "raw", "-O", "qcow2", str(source), str(target)],
            doing="converting an image",
            limits=processutils.ProcessLimits(address_space=256 << 20),
        )
    assert target.stat().st_size > source.stat().st_size
