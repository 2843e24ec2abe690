# SPDX-License-Identifier: Apache-2.0
"""Method `offline`: the disk of a guest that is shut off (or never ran).

Nothing writes to it, so our own read-only qemu-nbd is the frozen view. QEMU's
image lock, which qemu-nbd holds, keeps the guest from starting while the disk
is being read: the start fails, the disk does not.
"""

from __future__ import annotations

import os

from common.errors import CaptureFailed
from compute_agent.capture.base import CaptureTarget, Export
from compute_agent.capture.workspace import Workspace
from compute_agent.disks import qemu_nbd
from compute_agent.guest.domain import Guest


class OfflineCapture:
    """A read-only NBD export of a disk that no QEMU process has open."""

    method = "offline"
    pausable = False

    def __init__(self, guest: Guest, target: CaptureTarget, workspace: Workspace) -> None:
        self._guest = guest
        self._target = target
        self._workspace = workspace
        self._server: qemu_nbd.QemuNbd | None = None

    def prepare(self) -> None:
        """Make the socket's directory."""
        self._workspace.make((os.getuid(), os.getgid()))

    def begin(self) -> None:
        """Start the server; raise CaptureFailed if the guest was started meanwhile."""
        if self._guest.is_active():
            raise CaptureFailed("the instance was started while its snapshot began; try again")
        self._server = qemu_nbd.QemuNbd(
            self._target.disk.path or "",
            image_format=self._target.disk.format,
            socket_path=self._workspace.socket_path,
            export_name=self._target.disk.target,
        )
        self._server.start()

    def export(self) -> Export:
        """Return our server's export."""
        return Export(socket_path=str(self._workspace.socket_path), name=self._target.disk.target)

    def end(self) -> None:
        """Stop the server and remove its socket."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        self._workspace.remove()
