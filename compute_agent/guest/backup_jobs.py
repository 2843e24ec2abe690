# SPDX-License-Identifier: Apache-2.0
"""libvirt's backup job and checkpoints, as far as a capture needs them.

A checkpoint is a dirty bitmap in the disk's own image: what was written since.
Called by `capture.backup`; every method raises what `guest.errors` makes of
libvirt's words.
"""

from __future__ import annotations

import logging
import time
import xml.etree.ElementTree as ET

import libvirt

from common.errors import InstanceBusy
from compute_agent.guest import description
from compute_agent.guest.errors import translated
from compute_agent.guest.handle import Handle

LOG = logging.getLogger(__name__)

_JOB_END_TIMEOUT_S = 30.0
_LOOK_S = 0.02

#: What libvirt has said of an (emulator, architecture, machine type, domain type).
_BACKUP_SUPPORT: dict[tuple[str | None, ...], bool] = {}

_NO_BACKUP = frozenset(
    {
        libvirt.VIR_ERR_NO_DOMAIN_BACKUP,
        libvirt.VIR_ERR_OPERATION_INVALID,
        libvirt.VIR_ERR_NO_DOMAIN,
    }
)


class BackupJobs(Handle):
    """What a backup job and its checkpoints are made, found and ended by."""

    def can_be_backed_up(self, domain: ET.Element) -> bool:
        """Tell whether libvirt runs backup jobs with the QEMU that `<domain>` names."""
        machine = domain.find("os/type")
        emulator = domain.findtext("devices/emulator")
        asked = (
            emulator,
            machine.get("arch") if machine is not None else None,
            machine.get("machine") if machine is not None else None,
            domain.get("type"),
        )
        # libvirt may probe QEMU for it; the answer stays the same as long as the guest runs.
        if asked not in _BACKUP_SUPPORT:
            with translated("asking what its QEMU can do"):
                found = description.parse(self._domain.connect().getDomainCapabilities(*asked))
            backup = found.find("features/backup")
            _BACKUP_SUPPORT[asked] = backup is not None and backup.get("supported") == "yes"
        return _BACKUP_SUPPORT[asked]

    def begin_backup(self, backup_xml: str) -> None:
        """Begin a pull-mode backup job into scratch files that exist already.

        libvirt must never create the scratch itself: while it does, a suspend
        from anybody can slip in, and QEMU 7.2 then aborts.
        """
        with translated("fixing the point in time"):
            self._domain.backupBegin(
                backup_xml, None, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
            )

    def backup_description(self) -> str | None:
        """Return the XML of the backup job open on the guest, or None if there is none."""
        try:
            return str(self._domain.backupGetXMLDesc())
        except libvirt.libvirtError as error:
            if error.get_error_code() in _NO_BACKUP:
                return None
            with translated("looking for a backup job"):
                raise

    def end_backup(self) -> None:
        """End the backup job of the guest; harmless if there is none (any more).

        Returns when the job is gone: libvirt's own call only asks for it.
        Raises InstanceBusy if it is still there after half a minute.
        """
        try:
            self._domain.abortJob()
        except libvirt.libvirtError as error:
            if self.backup_description() is not None:
                with translated("ending the backup job"):
                    raise
            LOG.debug("No backup job to end: %s", error)
        deadline = time.monotonic() + _JOB_END_TIMEOUT_S
        while self.backup_description() is not None:
            if time.monotonic() > deadline:
                raise InstanceBusy("the hypervisor does not end the backup job")
            time.sleep(_LOOK_S)

    def checkpoint_names(self) -> frozenset[str]:
        """Return the names of the checkpoints that libvirt knows of the guest."""
        with translated("listing its checkpoints"):
            return frozenset(one.getName() for one in self._domain.listAllCheckpoints())

    def create_checkpoint(self, checkpoint_xml: str) -> str:
        """Begin to note what is written from now on; return libvirt's full XML of it.

        The XML is what `redefine_checkpoint` needs when libvirt has lost it.
        """
        with translated("creating a checkpoint"):
            return str(self._domain.checkpointCreateXML(checkpoint_xml).getXMLDesc())

    def redefine_checkpoint(self, full_xml: str) -> None:
        """Tell libvirt anew of a checkpoint whose bitmap is still in the disk's image.

        By itself: what was its parent may be gone, and libvirt refuses one that names such.
        """
        checkpoint = ET.fromstring(full_xml)  # noqa: S314 # libvirt itself wrote it
        for parent in checkpoint.findall("parent"):
            checkpoint.remove(parent)
        flags = (
            libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
            | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
        )
        with translated("redefining a checkpoint"):
            self._domain.checkpointCreateXML(ET.tostring(checkpoint, encoding="unicode"), flags)

    def delete_checkpoint(self, name: str) -> None:
        """Forget a checkpoint and its bitmap; one that is gone already is fine.

        Where the bitmap is lost (QEMU was killed), only libvirt's record goes.
        """
        try:
            checkpoint = self._domain.checkpointLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                return
            with translated("looking for a checkpoint"):
                raise
        try:
            checkpoint.delete()
        except libvirt.libvirtError as error:
            LOG.info("The bitmap of checkpoint %s cannot be removed (%s)", name, error)
            with translated("deleting a checkpoint"):
                checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
