# SPDX-License-Identifier: Apache-2.0
"""Method `overlay`: the guest goes on in a fresh overlay while its disk is read below it.

For disks that a backup job would be unsafe for: nothing of ours is connected
to the guest's own QEMU process, our qemu-nbd reads the disk, which nobody
writes to any more. At the end the overlay is merged back, its base named, and
the guest is on its disk again. The overlay lies beside the disk, so it is as
durable as the disk is: for that time it holds what the guest writes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from common import qemu_img
from common.errors import InstanceBusy, InstanceNotFound
from compute_agent.capture import space
from compute_agent.capture.base import CaptureTarget, Export, Plan
from compute_agent.capture.servers import Servers
from compute_agent.capture.workspace import Workspace

LOG = logging.getLogger(__name__)


class OverlayCapture:
    """External overlays on one or several disks, put on at one instant."""

    method = "overlay"
    pausable = True
    since: str | None = None

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._guest = plan.guest
        self._servers = Servers(plan.workspace)
        #: The overlays were made here and never given away: nobody can have written to them.
        self._never_put_on = False
        self._switch_xml = ""

    def prepare(self) -> None:
        """Check for space, make the overlays, flush the images; leave the switch alone to do."""
        targets = self._plan.targets
        self._plan.take_room(self._needs())
        self._never_put_on = True
        owner = self._plan.owner()
        self._plan.workspace.make(owner)
        for target in targets:
            overlay = self.overlay_path(target)
            qemu_img.create_overlay(
                overlay,
                backing_file=target.path,
                backing_format=target.disk.format,
                size_bytes=target.capacity_bytes,
            )
            os.chown(overlay, *owner)
        self._switch_xml = self._guest.switch_xml(
            {target.name: str(self.overlay_path(target)) for target in targets}
        )
        space.flush([target.path for target in targets])

    def hold_room(self) -> None:
        """Promise it the room for its overlays, and for merging them, again."""
        self._plan.hold_room(self._needs())

    def begin(self) -> None:
        """Switch the guest over: the instant is QEMU's `transaction` inside this call."""
        self._never_put_on = False
        self._guest.switch_to_overlays(self._switch_xml)

    def exports(self) -> tuple[Export, ...]:
        """Serve the disks, which now stand still, and return the exports."""
        return tuple(self._servers.export(target) for target in self._plan.targets)

    def growing(self) -> tuple[Path, ...]:
        """Return the overlays."""
        return tuple(self.overlay_path(target) for target in self._plan.targets)

    def reserve_bytes(self) -> int:
        """A sparse disk takes as much again of its file system when an overlay is merged."""
        return space.allocated_bytes(
            self.overlay_path(target) for target in self._plan.targets if _grows(target)
        )

    def end(self) -> None:
        """Stop reading, merge what the guest wrote meanwhile, and remove the overlays.

        Whatever fails, every disk gets its turn; the first failure is raised
        in the end. An overlay whose content is not known to be on its disk is
        kept, and the log says so.
        """
        failures: list[Exception] = []
        merges = [functools.partial(self._put_back, target) for target in self._plan.targets]
        parts: list[Callable[[], None]] = [self._servers.stop, *merges]
        for give_back in parts:
            try:
                give_back()
            except Exception as error:
                LOG.warning("One part of the capture is not given back: %s", error)
                failures.append(error)
        if failures:
            raise failures[0]
        self._plan.workspace.remove()
        self._plan.release_room()

    def overlay_path(self, target: CaptureTarget) -> Path:
        """Return where a disk's overlay lies: beside a file, in the scratch for a device."""
        return _overlay_path(self._plan.workspace, target)

    def _needs(self) -> list[tuple[Path, int]]:
        """Return what may grow: each overlay, and its disk when the overlay is merged."""
        targets = self._plan.targets
        overlays = [(self.overlay_path(one), one.capacity_bytes) for one in targets]
        return overlays + [(Path(one.path), one.capacity_bytes) for one in targets if _grows(one)]

    def _put_back(self, target: CaptureTarget) -> None:
        """Have the guest write to its disk again, and remove the overlay if nothing is lost."""
        overlay = self.overlay_path(target)
        done = self._never_put_on
        if not done:
            with contextlib.suppress(InstanceNotFound):
                done = self._is_merged(target, overlay)
        if done:
            overlay.unlink(missing_ok=True)
        else:
            _remove_if_empty(overlay, target)
        self._note_path(target).unlink(missing_ok=True)

    def _is_merged(self, target: CaptureTarget, overlay: Path) -> bool:
        """Merge the overlay if the guest is on it; tell whether all of it is on the disk now.

        Raises InstanceBusy if the guest is on it even so.
        """
        source = self._guest.source_path(target.name)
        if source == str(overlay):
            LOG.info("Merging what was written to %s meanwhile", target.name)
            merged = self._merge(target, overlay)
            source = self._guest.source_path(target.name)
            if source == str(overlay):
                raise InstanceBusy(f"the overlay of {target.name} is in use again; try later")
            if merged:
                return True
        if source != target.path or not overlay.exists():
            return False
        # Merged just now by qemu-img, or by an attempt that was cut off right after its merge.
        note = self._note_path(target)
        return note.exists() and note.read_text() in (_committed(overlay), self._by_this_qemu())

    def _merge(self, target: CaptureTarget, overlay: Path) -> bool:
        """Merge the overlay; True if QEMU did, False if the note must show that nobody has
        written to it since qemu-img did."""
        if not self._guest.is_active():
            qemu_img.commit(overlay, base=target.path)
            self._note(target, _committed(overlay))
            # Started since, it writes to the overlay again, and must be found there.
            if not self._guest.is_active():
                self._guest.point_disk_at(target.disk)
        if not self._guest.is_active() or self._guest.source_path(target.name) != str(overlay):
            return False
        self._guest.merge_overlay(target.name, target.path)
        self._note(target, self._by_this_qemu())
        self._guest.leave_overlay(target.name)
        return True

    def _note(self, target: CaptureTarget, proof: str | None) -> None:
        """Write down what will prove a merge: the QEMU that was on the overlay is on the disk, or
        the overlay that was committed is still as it was."""
        self._note_path(target).write_text(proof or "")

    def _by_this_qemu(self) -> str | None:
        number = self._guest.process_id()
        return f"by QEMU {number}" if number else None

    def _note_path(self, target: CaptureTarget) -> Path:
        # Where QEMU's user may not write, and nothing outlives a boot of the host.
        sockets = self._plan.workspace.sockets
        return sockets.with_name(f"{sockets.name}-{target.name}.merge")


def give_up(targets: Iterable[CaptureTarget], workspace: Workspace) -> None:
    """Of a guest that this host has no more, remove the overlays that were never written to.

    Others are kept, and the log says so: its disk may have moved, not gone.
    """
    for target in targets:
        _remove_if_empty(_overlay_path(workspace, target), target)


def _overlay_path(workspace: Workspace, target: CaptureTarget) -> Path:
    if target.disk.source_type == "file":
        return Path(f"{target.path}.stillframe-{workspace.scratch.name}")
    # Not in the job's own directory: that goes with the job, an overlay may have to stay.
    return workspace.scratch.with_name(f"{workspace.scratch.name}-{target.name}")


def _grows(target: CaptureTarget) -> bool:
    """A merge makes a disk's file larger; a device has its size."""
    return target.disk.source_type == "file"


def _committed(overlay: Path) -> str:
    return f"by qemu-img at {overlay.stat().st_mtime_ns}"


def _remove_if_empty(overlay: Path, target: CaptureTarget) -> None:
    """Remove an overlay that was never written to; keep any other, and tell the operator."""
    if not overlay.exists():
        return
    if _is_empty(overlay):
        overlay.unlink(missing_ok=True)
        return
    LOG.error(
        "%s is kept: it holds what the instance wrote to %s during a snapshot, and that is not "
        "known to be on the disk. If a guest runs on it (on another host, after a migration), "
        "merge it there: 'virsh blockcommit GUEST %s --active --pivot --base %s'. If none does and "
        "nothing has been written to the disk since: 'qemu-img commit -f qcow2 -d -b %s %s'. "
        "Otherwise save what is needed of it; only then remove it",
        overlay,
        target.name,
        target.name,
        target.path,
        target.path,
        overlay,
    )


def _is_empty(overlay: Path) -> bool:
    """Tell whether nothing was ever written to an overlay, and nobody has it open.

    QEMU's image lock refuses the look while somebody has. What lies below it
    is not opened.
    """
    file = {"driver": "file", "filename": str(overlay)}
    image = {"driver": "qcow2", "backing": None, "file": file}
    try:
        mapped = qemu_img.run(
            ["map", "--output=json", f"json:{json.dumps(image)}"], doing="looking into an overlay"
        )
    except qemu_img.QemuImgError:
        return False
    return not any(extent.get("present", True) for extent in json.loads(mapped))
