# SPDX-License-Identifier: Apache-2.0
"""Makes the capture of a method's name, for a new job or for one being recovered."""

from __future__ import annotations

from collections.abc import Callable

from compute_agent.capture.backup import BackupCapture
from compute_agent.capture.base import Capture, Plan
from compute_agent.capture.offline import OfflineCapture
from compute_agent.capture.overlay import OverlayCapture

METHODS: dict[str, Callable[[Plan], Capture]] = {
    OfflineCapture.method: OfflineCapture,
    BackupCapture.method: BackupCapture,
    OverlayCapture.method: OverlayCapture,
}


def by_method(method: str, plan: Plan) -> Capture:
    """Return the capture; nothing is done yet. `method` is one that `choose` returned."""
    return METHODS[method](plan)
