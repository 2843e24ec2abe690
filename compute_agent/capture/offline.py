# SPDX-License-Identifier: Apache-2.0
"""Method `offline`: the disks of a guest that is shut off (or never ran).

Nothing writes to them, so our own read-only qemu-nbd is the frozen view. QEMU's
image lock, which qemu-nbd holds, keeps the guest from starting while a disk
is being read: the start fails, the disk does not.
"""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import CaptureFailed
from compute_agent.capture.base import Export, Plan
from compute_agent.capture.servers import Servers


class OfflineCapture:
    """Read-only NBD exports of disks that no QEMU process has open."""

    method = "offline"
    pausable = False
    since: str | None = None

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._servers = Servers(plan.workspace)

    def prepare(self) -> None:
        """Make the sockets' directory."""
        self._plan.workspace.make((os.getuid(), os.getgid()))

    def hold_room(self) -> None:
        """It takes none."""

    def begin(self) -> None:
        """Start the servers; raise CaptureFailed if the guest was started meanwhile."""
        if self._plan.guest.is_active():
            raise CaptureFailed("the instance was started while its snapshot began; try again")
        for target in self._plan.targets:
            self._servers.serve(target)

    def exports(self) -> tuple[Export, ...]:
        """Return our servers' exports."""
        return tuple(self._servers.export(target) for target in self._plan.targets)

    def growing(self) -> tuple[Path, ...]:
        """Nothing grows: nobody writes."""
        return ()

    def reserve_bytes(self) -> int:
        """Ending it takes no room."""
        return 0

    def end(self) -> None:
        """Stop the servers and remove their sockets."""
        self._servers.stop()
        self._plan.workspace.remove()
