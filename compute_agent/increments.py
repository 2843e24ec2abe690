# SPDX-License-Identifier: Apache-2.0
"""Which snapshots can be increments, and what the next one is relative to.

For each instance whose checkpoints are kept, one small file says which
checkpoint goes with which images (its chain), and which checkpoint a running
job has made (pending). `snapshot` asks for a plan, and settles or gives up.
Whatever does not fit ends in a full snapshot that says why, never in an error.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from common.errors import InstanceNotFound, StillframeError
from common.glance import Image, ImageNotFound, ImageService
from common.reports import DiskImage
from compute_agent.capture.base import CaptureTarget
from compute_agent.guest.domain import Guest

LOG = logging.getLogger(__name__)

#: Checkpoints with other names are not ours. Short: the name is sent inside the pause.
_PREFIX = "sf-"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The newest image of one disk: what the next increment of it lies on."""

    image_id: str
    sha512: str
    capacity_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A checkpoint and the images that hold what the disks were when it was made.

    `length` is how many images lie below these; `xml` is what libvirt needs to
    know the checkpoint again.
    """

    checkpoint: str
    xml: str
    length: int
    links: dict[str, Link]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """The checkpoint that a running job has made."""

    checkpoint: str
    xml: str
    job_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that is known of one instance."""

    chain: Chain | None = None
    pending: Pending | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IncrementPlan:
    """What a snapshot is relative to (`chain`, None: it is a full one), and why not, if asked."""

    chain: Chain | None = None
    why_full: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What came of a new checkpoint: was it made, and do the older ones still stand?"""

    checkpoint_made: bool
    chain_stands: bool


class Increments:
    """The chains of this host's instances, one file each in `directory`."""

    def __init__(self, directory: Path, images: ImageService, *, max_length: int) -> None:
        self._directory = directory
        self._images = images
        #: Increments that may lie on top of each other; may be changed at any time.
        self.max_length = max_length

    def plan(
        self, guest: Guest, targets: Sequence[CaptureTarget], *, method: str, image_format: str
    ) -> IncrementPlan:
        """Return whether the next snapshot of these disks can be an increment."""
        chain = self._read(guest.uuid).chain
        why = self._objection(guest, targets, chain, method, image_format)
        if why is None:
            return IncrementPlan(chain=chain)
        LOG.info("A full snapshot, no increment: %s", why)
        return IncrementPlan(why_full=why)

    def begin(self, guest: Guest, targets: Sequence[CaptureTarget], job_id: str) -> Begun:
        """Make the checkpoint that the snapshot after this one can be relative to.

        Made before the pause, so it notes a few blocks too many, never too few.
        An instance that takes none (an old qcow2, libvirt's own snapshots) only
        loses its increments.
        """
        self.give_up(guest)
        name = f"{_PREFIX}{job_id.replace('-', '')[:8]}"
        record = self._read(guest.uuid)
        if record.chain is not None:
            # What libvirt does not know it does not remove either.
            _is_known(guest, record.chain)
        # Recorded first: a crash between the two leaves nothing that nobody knows of.
        pending = Pending(checkpoint=name, xml="", job_id=job_id)
        self._write(guest.uuid, dataclasses.replace(record, pending=pending))
        chain_stands = True
        try:
            xml = guest.create_checkpoint(_checkpoint_xml(name, targets))
        except StillframeError:
            LOG.warning("A new checkpoint is refused; dropping the old ones and trying again")
            chain_stands, record = False, Record()
            try:
                self._drop(guest, keep=())
                xml = guest.create_checkpoint(_checkpoint_xml(name, targets))
            except StillframeError as error:
                LOG.warning("The instance takes no checkpoint, so no increments: %s", error)
                self._write(guest.uuid, record)
                return Begun(checkpoint_made=False, chain_stands=False)
        pending = dataclasses.replace(pending, xml=xml)
        self._write(guest.uuid, dataclasses.replace(record, pending=pending))
        return Begun(checkpoint_made=True, chain_stands=chain_stands)

    def settle(
        self, guest: Guest, job_id: str, images: Iterable[DiskImage], capacities: dict[str, int]
    ) -> None:
        """The job's images are published: its checkpoint is what the next one is relative to.

        If the guest is off, the chain stays as it was: the older checkpoint could not be
        removed now, and once nobody knows it, its bitmap stays in the disk's file.
        """
        record = self._read(guest.uuid)
        if record.pending is None or record.pending.job_id != job_id:
            return
        is_active = _is_active(guest)
        if record.chain is not None and not is_active:
            LOG.info("The guest is off: the next increment is relative to an earlier snapshot")
            return
        made = list(images)
        chain = Chain(
            checkpoint=record.pending.checkpoint,
            xml=record.pending.xml,
            length=max(image.chain_length for image in made),
            links={
                image.disk: Link(
                    image_id=image.image_id,
                    sha512=image.sha512 or "",
                    capacity_bytes=capacities[image.disk],
                )
                for image in made
            },
        )
        self._write(guest.uuid, Record(chain=chain))
        if is_active:
            self._drop(guest, keep=(chain.checkpoint,))

    def give_up(self, guest: Guest) -> None:
        """Forget the checkpoint of a job that did not come to its end.

        It stays noted where the guest is off, since libvirt removes no bitmap then, and
        where it is gone: its disk may come back with it.
        """
        record = self._read(guest.uuid)
        if record.pending is None or not _is_active(guest):
            return
        _is_known(guest, record.pending)
        guest.delete_checkpoint(record.pending.checkpoint)
        self._write(guest.uuid, dataclasses.replace(record, pending=None))

    def forget(self, guest: Guest) -> None:
        """Forget the instance's chain and its checkpoints; the next snapshot is a full one."""
        if self._path(guest.uuid).exists():
            record = self._read(guest.uuid)
            for made in (record.chain, record.pending):
                if made is not None and _is_active(guest):
                    _is_known(guest, made)
            self._drop(guest, keep=())
            self._path(guest.uuid).unlink(missing_ok=True)

    def forget_instance(self, instance_uuid: str) -> None:
        """Forget an instance that is gone."""
        self._path(instance_uuid).unlink(missing_ok=True)

    def instances(self) -> list[str]:
        """Return the instances that something is known of, for recovery at start."""
        return sorted(path.stem for path in self._directory.glob("*.json"))

    def _objection(
        self,
        guest: Guest,
        targets: Sequence[CaptureTarget],
        chain: Chain | None,
        method: str,
        image_format: str,
    ) -> str | None:
        """Return why there can be no increment, or None."""
        if method != "backup":
            return f"method {method} reads whole disks"
        if image_format != "qcow2":
            return f"an image of format {image_format} cannot be an increment"
        if chain is None:
            return "there is no earlier snapshot with a checkpoint on this host"
        if chain.length + 1 > self.max_length:
            return f"{chain.length} increments lie on top of each other already"
        sizes = {target.name: target.capacity_bytes for target in targets}
        if {name: link.capacity_bytes for name, link in chain.links.items()} != sizes:
            return "other disks, or other sizes, than at the last snapshot"
        if why := self._lost_parent(chain):
            return why
        return None if _is_known(guest, chain) else "the record of what has changed was lost"

    def _lost_parent(self, chain: Chain) -> str | None:
        for link in chain.links.values():
            try:
                image = self._images.show(link.image_id)
            except ImageNotFound:
                return "the last snapshot's image was deleted"
            if image.status != "active" or _holds_other_bytes(image, link):
                return f"the last snapshot's image is {image.status}, or not what it was"
            if image.disk_format != "qcow2":
                return f"the last snapshot's image is {image.disk_format}, which carries none"
            if not self._is_whole_below(image, chain.length):
                return "an image that the last snapshot lies on was deleted"
        return None

    def _is_whole_below(self, image: Image, length: int) -> bool:
        """Tell whether everything below an image is there, down to the full one.

        Not fewer images either: whoever may change an image can say that it lies on none.
        """
        for _ in range(length):
            parent_id = image.properties.get("stillframe_parent")
            if parent_id is None:
                return False
            try:
                image = self._images.show(parent_id)
            except ImageNotFound:
                return False
            if image.status != "active":
                return False
        return "stillframe_parent" not in image.properties

    def _drop(self, guest: Guest, keep: Sequence[str]) -> None:
        for name in guest.checkpoint_names():
            if name.startswith(_PREFIX) and name not in keep:
                guest.delete_checkpoint(name)

    def _path(self, instance_uuid: str) -> Path:
        return self._directory / f"{instance_uuid}.json"

    def _read(self, instance_uuid: str) -> Record:
        try:
            return _record(json.loads(self._path(instance_uuid).read_text()))
        except FileNotFoundError:
            return Record()
        except (ValueError, TypeError, KeyError, AttributeError):
            LOG.warning("The record of instance %s's checkpoints is damaged", instance_uuid)
            return Record()

    def _write(self, instance_uuid: str, record: Record) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(instance_uuid)
        draft = path.with_suffix(".new")
        with draft.open("w") as file:
            json.dump(dataclasses.asdict(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def give_up_all(
    increments: Increments, find: Callable[[str], Guest], *, but: Collection[str]
) -> None:
    """Forget, at start, every pending checkpoint and the instances that are gone, `but` these.

    `find` returns the guest of an instance.
    """
    for instance_uuid in increments.instances():
        if instance_uuid in but:
            continue
        try:
            increments.give_up(find(instance_uuid))
        except InstanceNotFound:
            increments.forget_instance(instance_uuid)
        except StillframeError as error:
            LOG.warning("A checkpoint of instance %s stays for now: %s", instance_uuid, error)


def _holds_other_bytes(image: Image, link: Link) -> bool:
    """Tell by Glance's hash, where it is of our kind."""
    return image.hash_algorithm == "sha512" and link.sha512 not in (image.hash_value, "")


def _is_active(guest: Guest) -> bool:
    try:
        return guest.is_active()
    except InstanceNotFound:
        return False


def _is_known(guest: Guest, made: Chain | Pending) -> bool:
    """Tell whether libvirt knows a checkpoint, if need be anew.

    It forgets them with a domain that is undefined, and Nova undefines and defines at each
    hard reboot and start; the bitmap stays in the disk's file.
    """
    if made.checkpoint in guest.checkpoint_names():
        return True
    if not made.xml:
        return False
    try:
        guest.redefine_checkpoint(made.xml)
    except StillframeError as error:
        LOG.info("Checkpoint %s is lost: %s", made.checkpoint, error)
        return False
    return True


def _checkpoint_xml(name: str, targets: Sequence[CaptureTarget]) -> str:
    checkpoint = ET.Element("domaincheckpoint")
    ET.SubElement(checkpoint, "name").text = name
    disks = ET.SubElement(checkpoint, "disks")
    for target in targets:
        ET.SubElement(disks, "disk", name=target.name, checkpoint="bitmap")
    return ET.tostring(checkpoint, encoding="unicode")


def _record(found: dict[str, Any]) -> Record:
    chain, pending = found.get("chain"), found.get("pending")
    return Record(
        chain=Chain(
            checkpoint=chain["checkpoint"],
            xml=chain["xml"],
            length=chain["length"],
            links={name: Link(**link) for name, link in chain["links"].items()},
        )
        if chain
        else None,
        pending=Pending(**pending) if pending else None,
    )
