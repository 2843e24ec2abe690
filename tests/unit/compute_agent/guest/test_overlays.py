# SPDX-License-Identifier: Apache-2.0
"""Merges end only where they should, and a definition becomes what it was."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from common.errors import InstanceBusy
from compute_agent.guest import description, overlays
from compute_agent.guest.errors import HypervisorError
from compute_agent.guest.overlays import Overlays

ACTIVE_COMMIT = libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT
DOMAIN = """
<domain id='7'><devices><disk type='file' device='disk'>
  <driver name='qemu' type='qcow2' cache='none'/><source file='/d/vda.over' index='3'/>
  <backingStore type='file'/>{mirror}<target dev='vda' bus='virtio'/>
</disk></devices></domain>
"""
READY = "<mirror type='file' job='active-commit' ready='yes'><source file='{0}'/></mirror>"
NOT_READY = "<mirror type='file' job='active-commit'><source file='/d/vda'/></mirror>"
READY_DEVICE = (
    "<mirror type='block' job='active-commit' ready='yes'><source dev='/d/vda'/></mirror>"
)


class Domain:
    """libvirt's domain, as far as overlays are concerned; also its own connection."""

    def __init__(self, mirror: str = "", job: dict[str, int] | None = None) -> None:
        self.mirror, self.job = mirror, job or {}
        self.done: list[str] = []
        self.defined: list[str] = []
        self.described = 0

    def connect(self) -> Domain:
        return self

    def isAlive(self) -> bool:
        return True

    def UUIDString(self) -> str:
        return "guest"

    def name(self) -> str:
        return "guest"

    def XMLDesc(self, _flags: int = 0) -> str:
        self.described += 1
        return DOMAIN.format(mirror=self.mirror)

    def snapshotCreateXML(self, xml: str, _flags: int) -> None:
        self.done.append(xml)

    def defineXML(self, xml: str) -> None:
        self.defined.append(xml)

    def blockJobInfo(self, _target: str) -> dict[str, int]:
        return self.job

    def blockCommit(self, target: str, base: str, *_: Any) -> None:
        self.done.append(f"commit {target} to {base}")
        self.mirror = READY.format(base)

    def blockJobAbort(self, target: str, flags: int) -> None:
        assert flags == libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        self.done.append(f"pivot {target}")


def guest(domain: Domain) -> Overlays:
    anything: Any = domain
    return Overlays(anything, lambda _: anything)


def job(kind: int) -> dict[str, int]:
    return {"type": kind, "bandwidth": 0, "cur": 1, "end": 2}


@pytest.mark.parametrize(
    ("put_on", "told"),
    [({"vda": "/d/over"}, ("external", "/d/over")), ({"vdb": "/d/over"}, ("no", None))],
)
def test_a_switch_leaves_no_disk_to_libvirt_and_takes_one_call(
    put_on: dict[str, str], told: tuple[str, str | None]
) -> None:
    domain = Domain()
    switch_xml = guest(domain).switch_xml(put_on)
    domain.described = 0
    guest(domain).switch_to_overlays(switch_xml)
    assert domain.described == 0
    (sent,) = domain.done
    disk = description.parse(sent).find("disks/disk[@name='vda']")
    assert disk is not None
    source = disk.find("source")
    assert (disk.get("snapshot"), None if source is None else source.get("file")) == told


def test_a_merge_names_its_base_and_is_ended_by_its_own_call() -> None:
    domain = Domain()
    guest(domain).merge_overlay("vda", "/d/vda")
    assert domain.done == ["commit vda to /d/vda"]
    guest(domain).leave_overlay("vda")
    assert domain.done[-1] == "pivot vda"


@pytest.mark.parametrize("mirror", [READY.format("/d/vda"), READY_DEVICE])
def test_a_merge_that_an_earlier_agent_began_is_taken_up(mirror: str) -> None:
    domain = Domain(mirror, job(ACTIVE_COMMIT))
    guest(domain).merge_overlay("vda", "/d/vda")
    assert domain.done == []


@pytest.mark.parametrize(
    ("mirror", "kind"),
    [
        (READY.format("/d/copy"), libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY),
        ("", libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL),
        (READY.format("/images/base"), ACTIVE_COMMIT),
    ],
    ids=["a copy", "a pull", "a merge into another base"],
)
def test_a_block_job_of_somebody_else_s_is_left_alone(mirror: str, kind: int) -> None:
    domain = Domain(mirror, job(kind))
    with pytest.raises(InstanceBusy, match="another operation"):
        guest(domain).merge_overlay("vda", "/d/vda")
    assert domain.done == []


def test_a_merge_that_does_not_move_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "_STALL_TIMEOUT_S", 0.0)
    with pytest.raises(InstanceBusy, match="cannot be merged now"):
        guest(Domain(NOT_READY, job(ACTIVE_COMMIT))).merge_overlay("vda", "/d/vda")


@pytest.mark.parametrize(
    ("source_type", "attribute", "path", "image_format"),
    [("block", "dev", "/dev/vg/x", "raw"), ("file", "file", "/d/vda", "qcow2")],
)
def test_a_definition_says_again_what_the_disk_was(
    source_type: str, attribute: str, path: str, image_format: str
) -> None:
    domain = Domain()
    was = description.Disk(
        target="vda",
        device="disk",
        source_type=source_type,
        path=path,
        format=image_format,
        has_iothread=False,
        read_only=False,
        shareable=False,
    )
    guest(domain).point_disk_at(was)
    defined = description.parse(domain.defined[0])
    assert description.disks(defined) == [was]
    source = defined.find("devices/disk/source")
    assert source is not None
    assert {"file", "dev"} & set(source.attrib) == {attribute}
    assert defined.find("devices/disk/backingStore") is None


def test_a_disk_that_is_gone_is_said_to_be() -> None:
    with pytest.raises(HypervisorError, match="no disk vdb"):
        guest(Domain(job=job(ACTIVE_COMMIT))).merge_overlay("vdb", "/d/vdb")


def test_a_qemu_is_told_from_another_by_its_number() -> None:
    assert guest(Domain()).process_id() == "7"
