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
from compute_agent.guest.errors import HypervisorError, translated
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

    def switch_xml(self, overlays: Mapping[str, str]) -> str:
        """Return what `switch_to_overlays` takes for prepared qcow2 overlays; {target: path}.

        The other disks are named, too: of one that is not, libvirt makes an overlay itself.
        """
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

    def switch_to_overlays(self, switch_xml: str) -> None:
        """Put overlays on disks, all at one instant; one call, for the guest may stand still."""
        with translated("fixing the point in time"):
            self._domain.snapshotCreateXML(switch_xml, _SWITCH)

    def source_path(self, target: str) -> str | None:
        """Return the file or device that a disk writes to now; None if there is no such disk."""
        disks = description.disks(self.describe())
        return next((disk.path for disk in disks if disk.target == target), None)

    def process_id(self) -> str | None:
        """Return libvirt's number of the QEMU that runs the guest now; None if none does.

        Another number is another QEMU, begun from the definition. Numbers are
        only good until the host is booted anew.
        """
        return self.describe().get("id")

    def merge_overlay(self, target: str, base_path: str) -> None:
        """Merge the active overlay of a running guest's disk into `base_path`.

        Returns when both are the same and stay so, for `leave_overlay`. Takes
        up a merge that an earlier agent began. Raises InstanceBusy if another
        job works on the disk, or nothing moves for a minute.
        """
        with translated(f"merging the overlay of {target}"):
            job = self._domain.blockJobInfo(target)
            if not job:
                self._domain.blockCommit(
                    target, base_path, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
                )
            elif job["type"] != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT:
                raise InstanceBusy(f"another operation works on {target}; try again when it ends")
            self._wait_until_ready(target, base_path)

    def leave_overlay(self, target: str) -> None:
        """Have the guest go on below the overlay that `merge_overlay` has merged."""
        with translated(f"ending the merge of {target}"):
            self._domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def point_disk_at(self, disk: description.Disk) -> None:
        """Have a shut-off guest's definition say of a disk what it was when `disk` was read."""
        with translated(f"restoring the definition of {disk.target}"):
            flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
            domain = description.parse(self._domain.XMLDesc(flags))
            _set_source(_element_of(domain, disk.target), disk)
            self._domain.connect().defineXML(ET.tostring(domain, encoding="unicode"))

    def _wait_until_ready(self, target: str, base_path: str) -> None:
        moved_at, last = time.monotonic(), -1
        while not self._is_ready(target, base_path):
            job = self._domain.blockJobInfo(target)
            if job and job["cur"] != last:
                moved_at, last = time.monotonic(), job["cur"]
            if time.monotonic() - moved_at > _STALL_TIMEOUT_S:
                raise InstanceBusy(f"the overlay of {target} cannot be merged now")
            time.sleep(_LOOK_S)

    def _is_ready(self, target: str, base_path: str) -> bool:
        """Tell whether the merge may be ended; raise InstanceBusy if it goes elsewhere."""
        mirror = _element_of(self.describe(), target).find("mirror")
        if mirror is None:
            return False
        source = mirror.find("source")
        into = source.attrib if source is not None else mirror.attrib
        if into.get("file", into.get("dev")) != base_path:
            LOG.error("A block job of %s goes to %s, not to %s", target, dict(into), base_path)
            raise InstanceBusy(f"another operation works on {target}; try again when it ends")
        return mirror.get("ready") == "yes"


def _element_of(domain: ET.Element, target: str) -> ET.Element:
    """Return the `<disk>` of that name; raise HypervisorError if there is none (any more)."""
    for disk in domain.iterfind("devices/disk"):
        name = disk.find("target")
        if name is not None and name.get("dev") == target:
            return disk
    raise HypervisorError(f"the instance has no disk {target} any more")


def _set_source(element: ET.Element, disk: description.Disk) -> None:
    for below in element.findall("backingStore"):
        element.remove(below)
    # libvirt had made a file of it, for the overlay was one.
    element.set("type", disk.source_type)
    source, driver = element.find("source"), element.find("driver")
    if source is not None:
        for name in ("file", "dev"):
            source.attrib.pop(name, None)
        source.set("dev" if disk.source_type == "block" else "file", disk.path or "")
    if driver is not None:
        driver.set("type", disk.format)
