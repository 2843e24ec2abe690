# SPDX-License-Identifier: Apache-2.0
"""What a running job must leave free on the file systems that its files grow on."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import CaptureFailed
from compute_agent import watch

MIB = 1 << 20


@pytest.mark.parametrize(
    ("least", "for_its_end", "others", "ends"),
    [
        (10, 0, 0, False),
        (11, 0, 0, True),
        (5, 5, 0, False),
        (5, 6, 0, True),
        (5, 0, 5, False),
        (5, 0, 6, True),
    ],
)
def test_a_job_ends_before_its_file_system_is_full(
    monkeypatch: pytest.MonkeyPatch, least: int, for_its_end: int, others: int, ends: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10 * MIB))
    check = watch.space_is_left(
        [Path("/scratch/vda")], least * MIB, lambda: for_its_end * MIB, lambda _path: others * MIB
    )
    if not ends:
        check()
        return
    with pytest.raises(CaptureFailed, match="ran out of space"):
        check()


def test_a_look_that_fails_once_is_not_the_last(job: Any) -> None:
    """The file system of a disk may be on a network."""
    looked = threading.Semaphore(0)

    def check() -> None:
        looked.release()
        raise OSError("stale file handle")

    with watch.Watch(job, [check], interval_s=0.01):
        for _ in range(3):
            assert looked.acquire(timeout=10)
    assert not job.stopped.is_set()
