# SPDX-License-Identifier: Apache-2.0
"""A domain's disks, and which of them a snapshot can be taken of.

Formats come from the domain's definition, never from the disk's content: a
guest can write any header it likes into a raw disk. Pure functions over XML.
"""

from __future__ import annotations

import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

from common.errors import NoUsableDisk


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One `<disk>`: `target` is its name in the guest ("vda"), `path` its file or device."""

    target: str
    device: str
    source_type: str
    path: str | None
    format: str
    has_iothread: bool
    read_only: bool
    shareable: bool
    encrypted: bool = False
    #: Only slices of its file or device are the disk.
    partial: bool = False
    #: libvirt's boot order, lowest first; None where the disk has none.
    boot_order: int | None = None


#: What a guest can boot from, of what keeps its state.
_BOOTABLE = ("disk", "lun")
_CAPTURABLE_FORMATS = ("qcow2", "raw")

#: Why a disk cannot be captured, in the order in which reasons are given.
_UNUSABLE: tuple[tuple[Callable[[Disk], bool], str], ...] = (
    (lambda disk: disk.device == "lun", "it is a LUN passed through to the guest"),
    (lambda disk: disk.device != "disk", "it is a removable medium"),
    (lambda disk: disk.source_type == "network", "it is a network disk"),
    (lambda disk: disk.source_type not in ("file", "block"), "its source is no file or device"),
    (lambda disk: disk.path is None, "it has no medium"),
    (lambda disk: disk.read_only, "it is read-only"),
    (lambda disk: disk.shareable, "it is shared with other instances"),
    (lambda disk: disk.encrypted, "it is encrypted, and its snapshot would not be"),
    (lambda disk: disk.partial, "it is a part of a file or device"),
    (lambda disk: disk.format not in _CAPTURABLE_FORMATS, "its format is neither qcow2 nor raw"),
)


def parse(domain_xml: str) -> ET.Element:
    """Return the `<domain>` element of what libvirt gave us."""
    return ET.fromstring(domain_xml)  # noqa: S314 # libvirt's own output, not a user's


def disks(domain: ET.Element) -> list[Disk]:
    """Return every disk of the domain, in the order of its definition."""
    controllers = _iothread_controllers(domain)
    return [_disk(element, controllers) for element in domain.iterfind("devices/disk")]


def process_owner(domain: ET.Element) -> tuple[int, int] | None:
    """Return uid and gid that libvirt's label gives a running guest's QEMU; None without one."""
    for label in domain.iterfind("seclabel[@model='dac']/label"):
        if numbers := re.fullmatch(r"\+?(\d+):\+?(\d+)", label.text or ""):
            return int(numbers[1]), int(numbers[2])
    return None


def why_unusable(disk: Disk) -> str | None:
    """Return why a snapshot of this disk cannot be taken, or None if it can."""
    return next((reason for holds, reason in _UNUSABLE if holds(disk)), None)


def root_disk(domain: ET.Element) -> Disk:
    """Return the disk that a snapshot takes by default: the one the guest boots from.

    That is the disk with the lowest boot order, or else the first of the
    definition, as Nova writes it. No other is taken in its place: an image of a swap
    disk is no backup. Raises NoUsableDisk, with the reason, if it cannot be captured.
    """
    found = disks(domain)
    bootable = [disk for disk in found if disk.device in _BOOTABLE]
    if not bootable:
        reasons = "; ".join(f"{disk.target}: {why_unusable(disk)}" for disk in found)
        raise NoUsableDisk(
            f"the instance has no disk that can be captured ({reasons or 'it has no disk at all'})"
        )
    root = min(bootable, key=lambda disk: math.inf if disk.boot_order is None else disk.boot_order)
    reason = why_unusable(root)
    if reason is not None:
        raise NoUsableDisk(f"the boot disk {root.target} cannot be captured: {reason}")
    return root


def wanted_disks(domain: ET.Element, wanted: str) -> tuple[tuple[Disk, ...], dict[str, str]]:
    """Return the disks of a snapshot, the root disk first, and why others are left out.

    `wanted` is "root" or "all"; with "all", disks that cannot be captured are
    left out by name, except for removable media, which nobody misses. Raises
    NoUsableDisk if there is no root disk to take.
    """
    root = root_disk(domain)
    if wanted != "all":
        return (root,), {}
    others = [disk for disk in disks(domain) if disk.target != root.target]
    left_out = {
        disk.target: reason
        for disk in others
        if disk.device in _BOOTABLE and (reason := why_unusable(disk))
    }
    return (root, *(disk for disk in others if why_unusable(disk) is None)), left_out


def _disk(element: ET.Element, iothread_controllers: frozenset[str]) -> Disk:
    source, driver = element.find("source"), element.find("driver")
    boot = element.find("boot")
    return Disk(
        target=_attribute(element.find("target"), "dev") or "?",
        device=element.get("device", "disk"),
        source_type=element.get("type", "file"),
        path=_attribute(source, "file") or _attribute(source, "dev"),
        # libvirt treats a disk without a driver type as raw, and so does QEMU.
        format=_attribute(driver, "type") or "raw",
        has_iothread=_names_iothread(driver) or _controller_of(element) in iothread_controllers,
        read_only=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        encrypted=any(
            element.find(where) is not None for where in ("encryption", "source/encryption")
        ),
        partial=element.find("source/slices") is not None,
        boot_order=int(boot.get("order", "0")) if boot is not None else None,
    )


def _iothread_controllers(domain: ET.Element) -> frozenset[str]:
    """Return the SCSI controllers that an iothread serves, and with them all of their disks."""
    return frozenset(
        one.get("index", "0")
        for one in domain.iterfind("devices/controller[@type='scsi']")
        if _names_iothread(one.find("driver"))
    )


def _controller_of(disk: ET.Element) -> str | None:
    """Return the index of a SCSI disk's controller; None for a disk of another bus."""
    if _attribute(disk.find("target"), "bus") != "scsi":
        return None
    return _attribute(disk.find("address[@type='drive']"), "controller") or "0"


def _names_iothread(driver: ET.Element | None) -> bool:
    return driver is not None and (
        driver.get("iothread") is not None or driver.find("iothreads") is not None
    )


def _attribute(element: ET.Element | None, name: str) -> str | None:
    return element.get(name) if element is not None else None
