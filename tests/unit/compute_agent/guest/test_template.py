# SPDX-License-Identifier: Apache-2.0
"""The domain of a new instance: what the image says is obeyed, what anybody says stays text."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt
import pytest

from common.reports import Flavor
from compute_agent.guest import description, metadata
from compute_agent.guest.metadata import Owner
from compute_agent.guest.template import (
    Definition,
    domain_xml,
    instance_metadata,
    throw_away_metadata,
)

FLAVOR = Flavor(name="small", vcpus=2, memory_mib=512, disk_gib=1)


def metadata_of(name: str, **properties: str) -> ET.Element:
    return instance_metadata(
        name=name,
        owner=Owner(project_id="p", user_id="u"),
        flavor=FLAVOR,
        image_id="i",
        image_properties=properties,
    )


@pytest.fixture
def wish(tmp_path: Path) -> Definition:
    disk = tmp_path / "disk"
    disk.touch()
    return Definition(
        uuid="5f0c6e0e-6c0a-4a4f-9f6e-3f1f0e8a4b11",
        domain_name="instance-5f0c6e0e",
        virt_type="qemu",
        vcpus=2,
        memory_mib=512,
        disk=disk,
        disk_format="qcow2",
        console=tmp_path / "console.log",
        metadata=metadata_of("web"),
    )


def made(wish: Definition, **changes: Any) -> ET.Element:
    return description.parse(domain_xml(dataclasses.replace(wish, **changes)))


def test_the_announcer_and_a_snapshot_find_what_they_look_for(wish: Definition) -> None:
    domain = made(wish)
    root = description.root_disk(domain)
    assert (root.target, root.path, root.format) == ("vda", str(wish.disk), "qcow2")
    known = metadata.read(domain)
    assert (known.name, known.flavor) == ("web", FLAVOR)
    assert domain.findtext("memory") == "512"
    assert domain.find("devices/interface") is None


@pytest.mark.parametrize(
    "name", ["</name><x/>", "a & b", "\"quoted'", "ü ☃ \U0001f600", "bad\ufffe\x01", "]]>"]
)
def test_what_a_user_calls_it_stays_text(wish: Definition, name: str) -> None:
    domain = made(wish, metadata=metadata_of(name, hw_note=name))
    known = metadata.read(domain)
    cleaned = name.replace("\ufffe", "\ufffd").replace("\x01", "\ufffd")
    assert (known.name, known.image_properties) == (cleaned, {"hw_note": cleaned})
    assert len(list(domain)) == len(list(made(wish)))


@pytest.mark.parametrize(
    ("bus", "target"),
    [("virtio", "vda"), ("scsi", "sda"), ("sata", "sda"), ("ide", "hda"), ("nonsense'", "vda")],
)
def test_the_disk_is_where_the_guest_expects_it(wish: Definition, bus: str, target: str) -> None:
    domain = made(wish, image_properties={"hw_disk_bus": bus})
    assert description.root_disk(domain).target == target
    has_controller = domain.find("devices/controller[@type='scsi']") is not None
    assert has_controller is (bus == "scsi")


def test_firmware_and_machine_are_as_the_image_says(wish: Definition) -> None:
    properties = {"hw_firmware_type": "uefi", "hw_machine_type": "q35"}
    system = made(wish, image_properties=properties).find("os")
    assert system is not None
    assert system.get("firmware") == "efi"
    kind = system.find("type")
    assert kind is not None
    assert kind.get("machine") == "q35"
    odd = made(wish, image_properties={"hw_machine_type": "q35'/><x"}).find("os/type")
    assert odd is not None
    assert odd.get("machine") is None


@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata", "ide"])
def test_libvirt_takes_it(wish: Definition, bus: str) -> None:
    properties = {"hw_disk_bus": bus, "hw_machine_type": "pc"}
    asked = dataclasses.replace(
        wish,
        virt_type="test",
        networks=("default",),
        image_properties=properties,
        disk_bytes_s=1000,
        metadata=metadata_of("<web> & \ufffe", **properties),
    )
    connection = libvirt.open("test:///default")
    try:
        domain = connection.defineXMLFlags(domain_xml(asked), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        defined = description.parse(domain.XMLDesc())
        domain.undefine()
    finally:
        connection.close()
    assert metadata.read(defined).flavor == FLAVOR
    assert description.root_disk(defined).path == str(wish.disk)
    assert defined.find("devices/interface") is not None


def test_each_network_is_an_interface(wish: Definition) -> None:
    domain = made(wish, networks=("lan", "dmz"), image_properties={"hw_vif_model": "e1000"})
    sources = [one.get("network") for one in domain.iterfind("devices/interface/source")]
    models = {one.get("type") for one in domain.iterfind("devices/interface/model")}
    assert (sources, models) == (["lan", "dmz"], {"e1000"})


def test_a_throw_away_one_is_known_for_what_it_is(wish: Definition) -> None:
    domain = made(wish, metadata=throw_away_metadata(), disk_bytes_s=1000)
    assert metadata.read(domain).is_throw_away
    assert domain.findtext("devices/disk/iotune/total_bytes_sec") == "1000"
    assert not metadata.read(made(wish)).is_throw_away
