# SPDX-License-Identifier: Apache-2.0
"""A qemu-img that nobody waits for any more is not left running."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

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
