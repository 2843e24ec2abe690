# SPDX-License-Identifier: Apache-2.0
"""External overlays: put on a guest's disks at one instant, and merged back afterwards.

Called by `capture.overlay`. The base of a merge is always named: left out,
libvirt would commit through the whole chain into an image that other instances
may share.
"""

from __future__ import annotations

import logging
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping

import libvirt

from common.errors import InstanceBusy
from compute_agent.guest import description
from compute_agent.guest.errors import translated
from compute_agent.guest.handle import Handle

LOG = logging.getLogger(__name__)

#: A merge that moves nothing for so long is given up (and tried again at the next start).
_STALL_TIMEOUT_S = 60.0
_LOOK_S = 0.05

_SWITCH = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
)


class Overlays(Handle):
    """What overlays are put on and merged by."""

    def switch_to_overlays(self, overlays: Mapping[str, str]) -> None:
        """Put prepared qcow2 overlays on disks, all at one instant; {target: path}."""
        with translated("fixing the point in time"):
            self._domain.snapshotCreateXML(self._switch_xml(overlays), _SWITCH)

    def source_path(self, target: str) -> str | None:
        """Return the file or device that a disk writes to now; None if there is no such disk."""
        disks = description.disks(self.describe())
        return next((disk.path for disk in disks if disk.target == target), None)

    def merge_overlay(self, target: str, base_path: str) -> None:
        """Merge the active overlay of a running guest's disk into `base_path` and go on there.

        Takes up a merge that an earlier agent began. Raises InstanceBusy if
        nothing moves for a minute.
        """
        with translated(f"merging the overlay of {target}"):
            if not self._domain.blockJobInfo(target):
                self._domain.blockCommit(
                    target, base_path, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
                )
            self._wait_until_ready(target)
            self._domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def point_disk_at(self, target: str, path: str, image_format: str) -> None:
        """Have a shut-off guest's definition name `path` as the disk `target` again."""
        with translated(f"restoring the definition of {target}"):
            flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
            domain = description.parse(self._domain.XMLDesc(flags))
            disk = next(
                one
                for one in domain.iterfind("devices/disk")
                if (found := one.find("target")) is not None and found.get("dev") == target
            )
            _set_source(disk, path, image_format)
            self._domain.connect().defineXML(ET.tostring(domain, encoding="unicode"))

    def _switch_xml(self, overlays: Mapping[str, str]) -> str:
        snapshot = ET.Element("domainsnapshot")
        disks = ET.SubElement(snapshot, "disks")
        for disk in description.disks(self.describe()):
            path = overlays.get(disk.target)
            if path is None:
                ET.SubElement(disks, "disk", name=disk.target, snapshot="no")
                continue
            element = ET.SubElement(
                disks, "disk", name=disk.target, snapshot="external", type="file"
            )
            ET.SubElement(element, "driver", type="qcow2")
            ET.SubElement(element, "source", file=path)
        return ET.tostring(snapshot, encoding="unicode")

    def _wait_until_ready(self, target: str) -> None:
        moved_at, last = time.monotonic(), -1
        while not self._is_ready(target):
            job = self._domain.blockJobInfo(target)
            if job and job["cur"] != last:
                moved_at, last = time.monotonic(), job["cur"]
            if time.monotonic() - moved_at > _STALL_TIMEOUT_S:
                raise InstanceBusy(f"the overlay of {target} cannot be merged now")
            time.sleep(_LOOK_S)

    def _is_ready(self, target: str) -> bool:
        for disk in self.describe().iterfind("devices/disk"):
            name, mirror = disk.find("target"), disk.find("mirror")
            if name is not None and name.get("dev") == target and mirror is not None:
                return mirror.get("ready") == "yes"
        return False


def _set_source(disk: ET.Element, path: str, image_format: str) -> None:
    for element in disk.findall("backingStore"):
        disk.remove(element)
    source, driver = disk.find("source"), disk.find("driver")
    if source is not None:
        attribute = "dev" if disk.get("type") == "block" else "file"
        for name in ("file", "dev"):
            source.attrib.pop(name, None)
        source.set(attribute, path)
    if driver is not None:
        driver.set("type", image_format)
