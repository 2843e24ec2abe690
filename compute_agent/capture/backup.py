# SPDX-License-Identifier: Apache-2.0
"""Method `backup`: libvirt's backup job in pull mode, for a guest with a QEMU process.

QEMU keeps the instant by copying each block to the scratch file before the
guest overwrites it, and serves the frozen view over NBD. Everything that takes
time is done before the pause (measured: libvirt creating the scratch itself
costs 4-7 ms, a dirty page cache up to 75 ms). The job must be ended before the
NBD client leaves: QEMU 7.2 aborts otherwise when the disk has an iothread.
"""

from __future__ import annotations

import logging
import os
import shutil
import xml.etree.ElementTree as ET

from common.errors import CaptureFailed
from compute_agent.capture.base import CaptureTarget, Export
from compute_agent.capture.workspace import Workspace
from compute_agent.disks import qemu_img
from compute_agent.guest.domain import Guest

LOG = logging.getLogger(__name__)

_FLUSH_ROUNDS = 2
_PERCENT = 100


class BackupCapture:
    """A pull-mode backup job of one disk."""

    method = "backup"
    pausable = True

    def __init__(
        self,
        guest: Guest,
        target: CaptureTarget,
        workspace: Workspace,
        *,
        scratch_reserve_percent: int,
    ) -> None:
        self._guest = guest
        self._target = target
        self._workspace = workspace
        self._reserve_percent = scratch_reserve_percent

    def prepare(self) -> None:
        """Check for space, make the scratch file, flush the disk's image twice."""
        disk_path = self._target.disk.path or ""
        disk = os.stat(disk_path)
        self._require_space()
        self._workspace.make((disk.st_uid, disk.st_gid))
        scratch = self._workspace.scratch_file
        qemu_img.create_scratch(scratch, self._target.capacity_bytes)
        os.chown(scratch, disk.st_uid, disk.st_gid)
        # A stop flushes the image inside the pause. Twice: the first round lets
        # the guest dirty more meanwhile, the second leaves next to nothing.
        for _ in range(_FLUSH_ROUNDS):
            _fsync(disk_path)

    def begin(self) -> None:
        """Begin the job: the instant is QEMU's `transaction` inside this call."""
        self._guest.begin_backup(self.backup_xml())

    def export(self) -> Export:
        """Return libvirt's NBD export; it is called after the disk's target."""
        return Export(socket_path=str(self._workspace.socket_path), name=self._target.disk.target)

    def end(self) -> None:
        """End our job if it is still open, and remove scratch and socket."""
        self._end_job()
        self._workspace.remove()

    def backup_xml(self) -> str:
        """Return the `<domainbackup>` for this capture: our disk alone, scratch made beforehand."""
        backup = ET.Element("domainbackup", mode="pull")
        ET.SubElement(backup, "server", transport="unix", socket=str(self._workspace.socket_path))
        disks = ET.SubElement(backup, "disks")
        disk = ET.SubElement(
            disks, "disk", name=self._target.disk.target, backup="yes", type="file"
        )
        ET.SubElement(disk, "scratch", file=str(self._workspace.scratch_file))
        return ET.tostring(backup, encoding="unicode")

    def _end_job(self) -> None:
        description = self._guest.backup_description()
        if description is None:
            return
        # Somebody else's job (a backup tool, another agent) is none of our business.
        if str(self._workspace.socket_path) in description:
            self._guest.end_backup()

    def _require_space(self) -> None:
        free = shutil.disk_usage(self._workspace.scratch.parent).free
        needed = self._target.capacity_bytes * self._reserve_percent // _PERCENT
        if free < needed:
            LOG.error(
                "%s has %d MiB free, and [capture] scratch_reserve_percent asks for %d",
                self._workspace.scratch.parent,
                free >> 20,
                needed >> 20,
            )
            raise CaptureFailed(
                "the host has too little free space to hold back what the instance overwrites "
                "during the snapshot; try again later"
            )


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
