# SPDX-License-Identifier: Apache-2.0
"""An increment is only made on what can carry it: a whole chain of qcow2 images that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg

from common import flatten
from common.conf import capture
from common.errors import InstanceNotFound
from common.glance import Image, ImageNotFound
from common.reports import DiskImage
from compute_agent.capture.base import CaptureTarget
from compute_agent.increments import Increments, give_up_all
from tests.unit.compute_agent.stage import disk_of

JOB = "0a1b2c3d-0000-4000-8000-000000000000"
TARGETS = (CaptureTarget(disk=disk_of("/d/vda"), capacity_bytes=1 << 30),)


class Guest:
    """Keeps whatever checkpoint is made."""

    uuid = "guest"

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.is_gone = self.is_off = False

    def is_active(self) -> bool:
        if self.is_gone:
            raise InstanceNotFound("gone")
        return not self.is_off

    def checkpoint_names(self) -> frozenset[str]:
        if self.is_gone:
            raise InstanceNotFound("gone")
        return frozenset(self.names)

    def delete_checkpoint(self, name: str) -> None:
        self.names.discard(name)

    def redefine_checkpoint(self, xml: str) -> None:
        self.create_checkpoint(xml)

    def create_checkpoint(self, xml: str) -> str:
        self.names.add(xml.partition("<name>")[2].partition("</name>")[0])
        return xml


class Glance:
    """Images by what they lie on; each is active, whole and qcow2 unless it is told otherwise."""

    def __init__(self) -> None:
        self.parents: dict[str, str | None] = {"full": None, "first": "full", "second": "first"}
        self.formats: dict[str, str] = {}
        self.algorithm = "sha512"

    def show(self, image_id: str) -> Image:
        if image_id not in self.parents:
            raise ImageNotFound("gone")
        parent = self.parents[image_id]
        return Image(
            id=image_id,
            name=None,
            status="active",
            owner=None,
            size_bytes=1,
            hash_algorithm=self.algorithm,
            hash_value="hash" if self.algorithm == "sha512" else "another",
            disk_format=self.formats.get(image_id, "qcow2"),
            container_format="bare",
            min_disk_gib=0,
            min_ram_mib=0,
            properties={} if parent is None else {"stillframe_parent": parent},
        )


@pytest.fixture
def glance() -> Glance:
    return Glance()


def increments_in(directory: Path, glance: Glance) -> Increments:
    anything: Any = glance
    return Increments(directory, anything, max_length=7)


def planned(glance: Glance, directory: Path) -> str | None:
    """Have a snapshot be the third of its chain, and return why the next one is a full one."""
    guest: Any = Guest()
    increments = increments_in(directory, glance)
    increments.begin(guest, TARGETS, JOB)
    image = DiskImage(image_id="second", disk="vda", sha512="hash", chain_length=2)
    increments.settle(guest, JOB, [image], {"vda": 1 << 30})
    return increments.plan(guest, TARGETS, method="backup", image_format="qcow2").why_full


def test_the_next_snapshot_is_an_increment_on_a_chain_that_is_whole(
    glance: Glance, tmp_path: Path
) -> None:
    assert planned(glance, tmp_path) is None


@pytest.mark.parametrize("gone", ["full", "first", "second"])
def test_an_image_deleted_anywhere_in_the_chain_makes_the_next_snapshot_a_full_one(
    glance: Glance, tmp_path: Path, gone: str
) -> None:
    """Increments are hidden: what a user sees, and deletes, is the full one below them all."""
    del glance.parents[gone]
    assert "deleted" in (planned(glance, tmp_path) or "")


@pytest.mark.parametrize("shortened", ["first", "second"])
def test_nothing_is_laid_on_a_chain_that_somebody_shortened(
    glance: Glance, tmp_path: Path, shortened: str
) -> None:
    """Whoever owns an image may unset what it lies on; what is below is missing all the same."""
    glance.parents[shortened] = None
    assert planned(glance, tmp_path) is not None


def test_a_glance_that_hashes_otherwise_carries_increments_too(
    glance: Glance, tmp_path: Path
) -> None:
    glance.algorithm = "sha256"
    assert planned(glance, tmp_path) is None


def test_a_checkpoint_stays_noted_while_the_guest_is_off(glance: Glance, tmp_path: Path) -> None:
    """libvirt would only forget it then, and the bitmap would stay in the disk's file."""
    guest: Any = Guest()
    increments = increments_in(tmp_path, glance)
    increments.begin(guest, TARGETS, JOB)
    (made,) = guest.names
    guest.is_off = True
    increments.give_up(guest)
    assert guest.names == {made}
    guest.is_off = False
    increments.begin(guest, TARGETS, JOB.replace("0a1b", "1a1b"))
    assert made not in guest.names


def settled(increments: Increments, guest: Any, job_id: str) -> None:
    """Let a snapshot be made and published."""
    increments.begin(guest, TARGETS, job_id)
    image = DiskImage(image_id="full", disk="vda", sha512="hash")
    increments.settle(guest, job_id, [image], {"vda": 1 << 30})


def test_a_guest_that_is_off_when_its_snapshot_is_made_keeps_no_bitmap_that_nobody_knows(
    glance: Glance, tmp_path: Path
) -> None:
    guest: Any = Guest()
    increments = increments_in(tmp_path, glance)
    settled(increments, guest, JOB)
    (first,) = guest.names
    create = guest.create_checkpoint
    guest.create_checkpoint = lambda xml: [create(xml), setattr(guest, "is_off", True)][0]
    settled(increments, guest, JOB.replace("0a1b", "1a1b"))
    # It is started as Nova does it; what libvirt does not know it does not remove.
    guest.create_checkpoint = create
    in_the_file = set(guest.names)
    guest.names.clear()
    guest.is_off = False
    real = guest.delete_checkpoint

    def delete(name: str) -> None:
        in_the_file.discard(name if name in guest.names else "")
        real(name)

    guest.delete_checkpoint = delete
    increments.begin(guest, TARGETS, JOB.replace("0a1b", "2a1b"))
    assert in_the_file == {first}
    assert first in guest.names


def test_an_instance_that_keeps_no_checkpoints_any_more_has_none_that_libvirt_had_forgotten(
    glance: Glance, tmp_path: Path
) -> None:
    guest: Any = Guest()
    increments = increments_in(tmp_path, glance)
    settled(increments, guest, JOB)
    made = set(guest.names)
    guest.names.clear()
    deleted: set[str] = set()
    guest.delete_checkpoint = deleted.add
    increments.forget(guest)
    assert (deleted, increments.instances()) == (made, [])


@pytest.mark.parametrize("content", ["{", "[]", '{"chain": {"checkpoint": "sf-1"}}'])
def test_a_record_that_cannot_be_read_makes_a_full_one_and_stops_no_agent(
    glance: Glance, tmp_path: Path, content: str
) -> None:
    guest: Any = Guest()
    tmp_path.joinpath(f"{guest.uuid}.json").write_text(content)
    increments = increments_in(tmp_path, glance)
    give_up_all(increments, lambda _: guest, but=())
    plan = increments.plan(guest, TARGETS, method="backup", image_format="qcow2")
    assert "no earlier snapshot" in (plan.why_full or "")


def test_nothing_is_laid_on_a_raw_image(glance: Glance, tmp_path: Path) -> None:
    glance.formats["second"] = "raw"
    assert "raw" in (planned(glance, tmp_path) or "")


def test_the_checkpoint_of_a_job_whose_domain_was_undefined_goes_when_it_is_defined_again(
    glance: Glance, tmp_path: Path
) -> None:
    """Its bitmap is in the disk's file all the while."""
    guest: Any = Guest()
    increments = increments_in(tmp_path, glance)
    increments.begin(guest, TARGETS, JOB)
    made = set(guest.names)
    guest.names.clear()
    guest.is_gone = True
    increments.give_up(guest)
    guest.is_gone = False
    deleted: list[str] = []
    guest.delete_checkpoint = lambda name: deleted.append(name) if name in guest.names else None
    increments.begin(guest, TARGETS, JOB.replace("0a1b", "1a1b"))
    assert set(deleted) == made


def test_only_instances_that_are_gone_at_the_agent_s_start_are_forgotten(
    glance: Glance, tmp_path: Path
) -> None:
    """An undefined domain may be defined again, as Nova does it."""
    guests: dict[str, Any] = {name: Guest() for name in ("here", "at work", "gone")}
    increments = increments_in(tmp_path, glance)
    for name, guest in guests.items():
        guest.uuid = name
        increments.begin(guest, TARGETS, JOB)

    def find(name: str) -> Any:
        if name != "here":
            raise InstanceNotFound("gone")
        return guests[name]

    give_up_all(increments, find, but={"at work"})
    assert increments.instances() == ["at work", "here"]
    assert guests["here"].names == set()
    assert guests["at work"].names != set()


def test_no_chain_can_be_configured_that_is_refused_when_it_is_restored() -> None:
    settings = cfg.ConfigOpts()
    settings.register_opts(capture.OPTS, group="capture")
    longest = flatten.MAX_CHAIN - 1
    settings.set_override("max_increments", longest, group="capture")
    with pytest.raises(ValueError, match="199"):
        settings.set_override("max_increments", longest + 1, group="capture")
