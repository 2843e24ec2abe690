# SPDX-License-Identifier: Apache-2.0
"""A qemu-nbd of our own for each disk of a capture, read-only, on sockets of its workspace."""

from __future__ import annotations

import logging
import subprocess

from compute_agent.capture.base import CaptureTarget, Export
from compute_agent.capture.workspace import Workspace
from compute_agent.disks.qemu_nbd import QemuNbd, QemuNbdError

LOG = logging.getLogger(__name__)


class Servers:
    """The servers of one capture; used by `offline` and `overlay`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._servers: list[QemuNbd] = []
        self._served: set[str] = set()

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
        self._served.add(target.name)

    def export(self, target: CaptureTarget) -> Export:
        """Return where a disk is served, having begun to serve it if an earlier agent did."""
        if target.name not in self._served:
            self.serve(target)
        return Export(
            target=target.name,
            socket_path=str(self._workspace.socket_path(target.name)),
            name=target.name,
        )

    def stop(self) -> None:
        """Stop all of them; safe to repeat.

        One that does not end keeps none of the others running, and is stopped
        again the next time. Raises QemuNbdError for it.
        """
        failures: list[Exception] = []
        for server in tuple(self._servers):
            try:
                server.stop()
            except (OSError, subprocess.SubprocessError) as error:
                LOG.warning("A qemu-nbd of ours does not end: %s", error)
                failures.append(error)
            else:
                self._servers.remove(server)
        if failures:
            raise QemuNbdError("the process that reads the disk does not end") from failures[0]
