# SPDX-License-Identifier: Apache-2.0
"""Method `backup`: libvirt's backup job in pull mode, for a guest with a QEMU process.

QEMU keeps the instant by copying each block to the scratch file before the
guest overwrites it, and serves the frozen view over NBD. Everything that takes
time is done before the pause (measured: libvirt creating the scratch itself
costs 4-7 ms, a checkpoint in the same call 17-23 ms, a dirty page cache up to
75 ms). The job must be ended before the NBD client leaves: QEMU 7.2 aborts
otherwise when the disk has an iothread.
"""

from __future__ import annotations

import logging
import os
import xml.etree.ElementTree as ET
from pathlib import Path

from common import qemu_img
from common.errors import InstanceBusy, InstanceNotFound
from compute_agent.capture import space
from compute_agent.capture.base import Export, Plan
from compute_agent.guest.errors import HypervisorError

LOG = logging.getLogger(__name__)

_CHANGES = "changes"


class BackupCapture:
    """A pull-mode backup job of one or several disks at one instant."""

    method = "backup"
    pausable = True

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._guest = plan.guest
        self._workspace = plan.workspace
        #: The checkpoint that the job is relative to; given up if its bitmap is lost.
        self.since = plan.since
        self._backup_xml = ""

    def prepare(self) -> None:
        """Check that nothing stands in the way, make the scratch files, flush the images.

        Only libvirt's call is left to `begin`, for the guest may stand still then.
        Raises InstanceBusy if another backup job is open: beginning ours would
        wait for it, with the guest paused.
        """
        self._require_no_other_job()
        targets = self._plan.targets
        owner = self._plan.owner()
        self._workspace.make(owner)
        self._plan.take_room(self._needs())
        for target in targets:
            scratch = self._workspace.scratch_file(target.name)
            qemu_img.create_scratch(scratch, target.capacity_bytes)
            os.chown(scratch, *owner)
        self._backup_xml = self.backup_xml()
        space.flush([target.path for target in targets])

    def hold_room(self) -> None:
        """Promise it the room for its scratch files again."""
        self._plan.hold_room(self._needs())

    def begin(self) -> None:
        """Begin the job: the instant is QEMU's `transaction` inside this call.

        A bitmap that was lost (QEMU was killed) is only found out here; the
        job then begins whole, in the same pause.
        """
        try:
            self._guest.begin_backup(self._backup_xml)
        except HypervisorError:
            if self.since is None:
                raise
            LOG.warning("Checkpoint %s is of no use any more; everything is read", self.since)
            self.since = None
            self._guest.begin_backup(self.backup_xml())

    def exports(self) -> tuple[Export, ...]:
        """Return libvirt's NBD exports; each is called after its disk's target."""
        changes = f"qemu:dirty-bitmap:{_CHANGES}" if self.since else None
        return tuple(
            Export(
                target=target.name,
                socket_path=str(self._workspace.socket_path()),
                name=target.name,
                changes=changes,
            )
            for target in self._plan.targets
        )

    def growing(self) -> tuple[Path, ...]:
        """Return the scratch files."""
        return tuple(self._workspace.scratch_file(one.name) for one in self._plan.targets)

    def reserve_bytes(self) -> int:
        """Ending it takes no room: the scratch only goes."""
        return 0

    def end(self) -> None:
        """End our job if it is still open, and remove scratch and socket."""
        try:
            self._end_job()
        except InstanceNotFound:
            LOG.debug("The instance is gone, and its backup job with it")
        self._workspace.remove()
        self._plan.release_room()

    def backup_xml(self) -> str:
        """Return the `<domainbackup>`: our disks alone, scratch made beforehand."""
        backup = ET.Element("domainbackup", mode="pull")
        if self.since:
            ET.SubElement(backup, "incremental").text = self.since
        socket = str(self._workspace.socket_path())
        ET.SubElement(backup, "server", transport="unix", socket=socket)
        disks = ET.SubElement(backup, "disks")
        for target in self._plan.targets:
            disk = ET.SubElement(disks, "disk", name=target.name, backup="yes", type="file")
            if self.since:
                disk.set("exportbitmap", _CHANGES)
            ET.SubElement(disk, "scratch", file=str(self._workspace.scratch_file(target.name)))
        return ET.tostring(backup, encoding="unicode")

    def _needs(self) -> list[tuple[Path, int]]:
        return [
            (self._workspace.scratch_file(one.name), one.capacity_bytes)
            for one in self._plan.targets
        ]

    def _require_no_other_job(self) -> None:
        description = self._guest.backup_description()
        if description is None:
            return
        if f"{self._workspace.sockets.parent}/" not in description:
            raise InstanceBusy("another backup of the instance is running; try again when it ends")
        LOG.warning("Ending a backup job of ours that nobody remembers")
        self._guest.end_backup()

    def _end_job(self) -> None:
        description = self._guest.backup_description()
        # Somebody else's job (a backup tool, another agent) is none of our business.
        if description is not None and str(self._workspace.socket_path()) in description:
            self._guest.end_backup()
