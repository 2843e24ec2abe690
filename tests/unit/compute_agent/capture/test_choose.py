# SPDX-License-Identifier: Apache-2.0
"""Which method serves which guest, and what is said where none does."""

from __future__ import annotations

import pytest

from common.errors import CaptureFailed
from compute_agent.capture.choose import Circumstances, choose
from tests.unit.compute_agent.stage import disk_of


def circumstances(
    *, active: bool, iothread: bool = False, host_backs_up: bool = True
) -> Circumstances:
    disk = disk_of("/d", has_iothread=iothread)
    return Circumstances(active=active, disks=(disk,), host_backs_up=host_backs_up)


def test_a_guest_that_runs_is_captured_by_a_backup_job() -> None:
    assert choose(circumstances(active=True)) == "backup"


def test_a_guest_that_is_off_is_captured_offline() -> None:
    assert choose(circumstances(active=False)) == "offline"


def test_a_disk_with_an_iothread_is_never_put_at_risk() -> None:
    """QEMU 7.2 aborts when the reader of such a disk's export dies."""
    assert choose(circumstances(active=True, iothread=True)) == "overlay"
    with pytest.raises(CaptureFailed, match="iothread"):
        choose(circumstances(active=True, iothread=True), "backup")


def test_a_host_that_is_too_old_for_backup_jobs_puts_an_overlay_on() -> None:
    assert choose(circumstances(active=True, host_backs_up=False)) == "overlay"
    with pytest.raises(CaptureFailed, match="too old"):
        choose(circumstances(active=True, host_backs_up=False), "backup")


@pytest.mark.parametrize(
    ("forced", "active"), [("backup", False), ("overlay", False), ("offline", True)]
)
def test_a_forced_method_that_cannot_serve_is_refused_with_its_reason(
    forced: str, active: bool
) -> None:
    with pytest.raises(CaptureFailed, match=f"{forced}: it is for instances that"):
        choose(circumstances(active=active), forced)
