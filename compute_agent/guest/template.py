# SPDX-License-Identifier: Apache-2.0
"""The domain of an instance that we make, as libvirt's XML. docs/instances.md explains it.

Its metadata is what the announcer reads again. Pure functions; every word that comes
from outside is written as text or as an attribute, never as XML.
"""

from __future__ import annotations

import dataclasses
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from common.reports import Flavor
from compute_agent.guest.metadata import OUR_NAMESPACE, THROW_AWAY, Owner, as_text

#: Properties of an image that say what its guest expects, and the values that we can give it.
_BUSES: dict[str, str] = {"virtio": "vda", "scsi": "sda", "sata": "sda", "ide": "hda"}
_VIF_MODELS = frozenset({"virtio", "e1000", "e1000e", "rtl8139"})
_MACHINE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")

_TEMPLATE = """\
<domain>
  <name/><uuid/><metadata/>
  <memory unit='MiB'/><vcpu/>
  <os><type>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'/>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' discard='unmap'/><source/><target/>
    </disk>
    <serial type='file'><source append='off'/><target port='0'/></serial>
    <channel type='unix'>
      <source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a domain shall be like."""

    uuid: str
    #: libvirt's own name of it.
    domain_name: str
    #: "kvm" or "qemu".
    virt_type: str
    vcpus: int
    memory_mib: int
    disk: Path
    disk_format: str
    console: Path
    #: libvirt's names of the networks; none: it has no interface.
    networks: tuple[str, ...] = ()
    image_properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metadata: ET.Element
    #: Bytes a second that it may read and write at the most; 0 is no limit.
    disk_bytes_s: int = 0


def instance_metadata(
    *,
    name: str,
    owner: Owner,
    flavor: Flavor,
    image_id: str,
    image_properties: Mapping[str, str],
) -> ET.Element:
    """Return what says whose an instance is and what it was made of."""
    instance = _element("instance")
    _add(instance, "name").text = as_text(name)
    size = _add(instance, "flavor", name=as_text(flavor.name))
    for key, figure in (
        ("memory", flavor.memory_mib),
        ("disk", flavor.disk_gib),
        ("vcpus", flavor.vcpus),
        ("ephemeral", flavor.ephemeral_gib),
        ("swap", flavor.swap_mib),
    ):
        _add(size, key).text = str(figure)
    belongs = _add(instance, "owner")
    _add(belongs, "user", uuid=as_text(owner.user_id)).text = as_text(owner.user_name or "")
    _add(belongs, "project", uuid=as_text(owner.project_id)).text = as_text(
        owner.project_name or ""
    )
    _add(instance, "root", type="image", uuid=image_id)
    properties = _add(_add(instance, "image"), "imageProperties")
    for key, value in sorted(image_properties.items()):
        _add(properties, "property", name=as_text(key)).text = as_text(value)
    return instance


def throw_away_metadata() -> ET.Element:
    """Return what says that an instance is nobody's, and to be shown to nobody."""
    instance = _element("instance")
    _add(instance, THROW_AWAY)
    return instance


def domain_xml(wish: Definition) -> str:
    """Return the definition as libvirt takes it."""
    domain = ET.fromstring(_TEMPLATE)  # noqa: S314 # our own words
    domain.set("type", wish.virt_type)
    _at(domain, "name").text, _at(domain, "uuid").text = wish.domain_name, wish.uuid
    _at(domain, "memory").text, _at(domain, "vcpu").text = str(wish.memory_mib), str(wish.vcpus)
    _at(domain, "metadata").append(wish.metadata)
    _as_the_image_says(domain, wish.image_properties)
    _write_disk(domain, wish)
    _at(domain, "devices/serial/source").set("path", os.fspath(wish.console))
    model = wish.image_properties.get("hw_vif_model", "")
    for network in wish.networks:
        interface = ET.SubElement(_at(domain, "devices"), "interface", type="network")
        ET.SubElement(interface, "source", network=network)
        ET.SubElement(interface, "model", type=model if model in _VIF_MODELS else "virtio")
    ET.register_namespace("stillframe", OUR_NAMESPACE)
    return ET.tostring(domain, encoding="unicode")


def _as_the_image_says(domain: ET.Element, properties: Mapping[str, str]) -> None:
    system = _at(domain, "os")
    machine = properties.get("hw_machine_type", "")
    if _MACHINE.fullmatch(machine):
        _at(system, "type").set("machine", machine)
    if properties.get("hw_firmware_type") == "uefi":
        system.set("firmware", "efi")


def _write_disk(domain: ET.Element, wish: Definition) -> None:
    disk = _at(domain, "devices/disk")
    driver = _at(disk, "driver")
    driver.set("type", wish.disk_format)
    if _takes_direct_io(wish.disk):
        driver.set("cache", "none")
        driver.set("io", "native")
    _at(disk, "source").set("file", os.fspath(wish.disk))
    bus = wish.image_properties.get("hw_disk_bus", "virtio")
    bus = bus if bus in _BUSES else "virtio"
    target = _at(disk, "target")
    target.set("dev", _BUSES[bus])
    target.set("bus", bus)
    if bus == "scsi":
        devices = _at(domain, "devices")
        ET.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    if wish.disk_bytes_s:
        tune = ET.SubElement(disk, "iotune")
        ET.SubElement(tune, "total_bytes_sec").text = str(wish.disk_bytes_s)


def _takes_direct_io(path: Path) -> bool:
    """Tell whether the file system goes without the host's cache, as not every one does."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _at(element: ET.Element, path: str) -> ET.Element:
    found = element.find(path)
    if found is None:
        raise LookupError(path)
    return found


def _element(name: str, **attributes: str) -> ET.Element:
    return ET.Element(f"{{{OUR_NAMESPACE}}}{name}", attributes)


def _add(parent: ET.Element, tag: str, /, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, f"{{{OUR_NAMESPACE}}}{tag}", attributes)
