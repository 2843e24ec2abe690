# SPDX-License-Identifier: Apache-2.0
"""Makes the capture of a method's name, for a new job or for one being recovered."""

from __future__ import annotations

from compute_agent.capture.backup import BackupCapture
from compute_agent.capture.base import Capture, CaptureTarget
from compute_agent.capture.offline import OfflineCapture
from compute_agent.capture.workspace import Workspace
from compute_agent.guest.domain import Guest


def by_method(
    method: str,
    guest: Guest,
    target: CaptureTarget,
    workspace: Workspace,
    scratch_reserve_percent: int,
) -> Capture:
    """Return the capture; nothing is done yet. `method` is one that `choose` returned."""
    if method == "backup":
        return BackupCapture(
            guest, target, workspace, scratch_reserve_percent=scratch_reserve_percent
        )
    return OfflineCapture(guest, target, workspace)
