# SPDX-License-Identifier: Apache-2.0
"""Which disk a snapshot takes, and why another cannot be taken."""

from __future__ import annotations

import pytest

from common.errors import NoUsableDisk
from compute_agent.guest import description

FILE = "<source file='/d/{0}'/><target dev='{0}'/><driver type='qcow2'/>"


def domain(*disks: str) -> str:
    return f"<domain><devices>{''.join(disks)}</devices></domain>"


def disk(target: str, inner: str = "", attributes: str = "type='file' device='disk'") -> str:
    return f"<disk {attributes}>{FILE.format(target)}{inner}</disk>"


def root(*disks: str) -> str:
    return description.root_disk(description.parse(domain(*disks))).target


def test_the_first_disk_that_is_no_removable_medium_is_the_root_disk() -> None:
    cdrom = disk("sda", attributes="type='file' device='cdrom'")
    assert root(cdrom, disk("vda"), disk("vdb")) == "vda"


def test_the_boot_order_says_which_disk_is_the_root_disk() -> None:
    assert root(disk("vda", "<boot order='2'/>"), disk("vdb", "<boot order='1'/>")) == "vdb"


@pytest.mark.parametrize(
    ("disk_xml", "reason"),
    [
        (disk("vda", attributes="type='file' device='cdrom'"), "removable medium"),
        (disk("vda", attributes="type='block' device='lun'"), "LUN"),
        (disk("vda", attributes="type='network' device='disk'"), "network disk"),
        (disk("vda", "<readonly/>"), "read-only"),
        (disk("vda", "<shareable/>"), "shared"),
        ("<disk type='file'><target dev='vda'/></disk>", "no medium"),
        (disk("vda", "<encryption format='luks'/>"), "encrypted"),
        (
            "<disk type='file'><source file='/f'><encryption format='luks'/></source>"
            "<target dev='vda'/></disk>",
            "encrypted",
        ),
        (
            "<disk type='file'><source file='/f'><slices/></source><target dev='vda'/></disk>",
            "a part of a file",
        ),
        (
            "<disk type='file'><source file='/f'/><target dev='vda'/><driver type='vmdk'/></disk>",
            "neither qcow2 nor raw",
        ),
    ],
    ids=[
        *("cdrom", "lun", "network", "read-only", "shareable", "no medium", "encrypted"),
        *("source encrypted", "sliced", "vmdk"),
    ],
)
def test_a_disk_that_cannot_be_captured_is_refused_with_its_reason(
    disk_xml: str, reason: str
) -> None:
    with pytest.raises(NoUsableDisk, match=reason):
        root(disk_xml)


@pytest.mark.parametrize(
    ("label", "owner"),
    [
        ("<seclabel model='dac'><label>+64055:+108</label></seclabel>", (64055, 108)),
        ("<seclabel model='apparmor'><label>libvirt-1</label></seclabel>", None),
        ("", None),
    ],
    ids=["dac", "another model", "none"],
)
def test_who_runs_the_guest_is_read_from_libvirt_s_label(
    label: str, owner: tuple[int, int] | None
) -> None:
    assert description.process_owner(description.parse(f"<domain>{label}</domain>")) == owner


def test_an_instance_without_a_disk_is_told_so() -> None:
    with pytest.raises(NoUsableDisk, match="no disk at all"):
        root()


@pytest.mark.parametrize("order", ["", "<boot order='1'/>"], ids=["no order", "first"])
@pytest.mark.parametrize("device", ["type='network' device='disk'", "type='block' device='lun'"])
def test_another_disk_is_not_taken_in_place_of_a_boot_disk_that_cannot_be(
    order: str, device: str
) -> None:
    """An image of the instance's swap or ephemeral disk would pass for one of the instance."""
    with pytest.raises(NoUsableDisk, match="boot disk vda"):
        root(disk("vda", order, device), disk("vdb"))


def test_a_disk_without_a_format_is_raw_and_never_probed() -> None:
    plain = "<disk type='block'><source dev='/dev/vg/x'/><target dev='vda'/></disk>"
    (found,) = description.disks(description.parse(domain(plain)))
    assert (found.format, found.path) == ("raw", "/dev/vg/x")


@pytest.mark.parametrize(
    ("driver", "has"),
    [
        ("<driver type='qcow2' iothread='1'/>", True),
        ("<driver type='qcow2'><iothreads><iothread id='1'/></iothreads></driver>", True),
        ("<driver type='qcow2'/>", False),
    ],
    ids=["attribute", "element", "none"],
)
def test_an_iothread_is_seen(driver: str, has: bool) -> None:
    xml = f"<disk type='file'>{driver}<source file='/f'/><target dev='vda'/></disk>"
    (found,) = description.disks(description.parse(domain(xml)))
    assert found.has_iothread is has


SCSI = "<disk><source file='/f'/><target dev='sda' bus='{0}'/>{1}</disk>"


@pytest.mark.parametrize(
    ("bus", "address", "has"),
    [
        ("scsi", "<address type='drive' controller='1'/>", True),
        ("scsi", "<address type='drive' controller='0'/>", False),
        ("scsi", "", False),
        ("sata", "<address type='drive' controller='1'/>", False),
    ],
    ids=["its own", "another", "the first, by default", "another bus"],
)
def test_an_iothread_of_the_controller_is_its_disks_too(bus: str, address: str, has: bool) -> None:
    """A disk of virtio-scsi is as unsafe for a backup job as one with an iothread of its own."""
    controllers = (
        "<controller type='scsi' index='0' model='virtio-scsi'/>"
        "<controller type='scsi' index='1' model='virtio-scsi'><driver iothread='1'/></controller>"
        "<controller type='sata' index='1'/>"
    )
    xml = domain(controllers, SCSI.format(bus, address))
    (found,) = description.disks(description.parse(xml))
    assert found.has_iothread is has


def test_a_scsi_disk_without_an_address_is_on_the_first_controller() -> None:
    controller = "<controller type='scsi' index='0'><driver queues='4' iothread='2'/></controller>"
    (found,) = description.disks(description.parse(domain(controller, SCSI.format("scsi", ""))))
    assert found.has_iothread
