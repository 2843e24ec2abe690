# SPDX-License-Identifier: Apache-2.0
"""A qemu-nbd of our own for each disk of a capture, read-only, on sockets of its workspace."""

from __future__ import annotations

from compute_agent.capture.base import CaptureTarget, Export
from compute_agent.capture.workspace import Workspace
from compute_agent.disks.qemu_nbd import QemuNbd


class Servers:
    """The servers of one capture; used by `offline` and `overlay`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._servers: list[QemuNbd] = []

    def serve(self, target: CaptureTarget) -> None:
        """Serve a disk's image as the export named after the disk; return when it can be read."""
        server = QemuNbd(
            target.path,
            image_format=target.disk.format,
            socket_path=self._workspace.socket_path(target.name),
            export_name=target.name,
        )
        self._servers.append(server)
        server.start()

    def export(self, target: CaptureTarget) -> Export:
        """Return where a disk is served."""
        return Export(
            target=target.name,
            socket_path=str(self._workspace.socket_path(target.name)),
            name=target.name,
        )

    def stop(self) -> None:
        """Stop all of them; safe to repeat."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.stop()
