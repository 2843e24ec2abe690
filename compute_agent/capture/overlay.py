# SPDX-License-Identifier: Apache-2.0
"""Method `overlay`: the guest goes on in a fresh overlay while its disk is read below it.

For disks that a backup job would be unsafe for: nothing of ours is connected
to the guest's own QEMU process, our qemu-nbd reads the disk, which nobody
writes to any more. At the end the overlay is merged back, its base named, and
the guest is on its disk again. The overlay lies beside the disk, so it is as
durable as the disk is: for that time it holds what the guest writes.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from common import qemu_img
from common.errors import InstanceNotFound
from compute_agent.capture import space
from compute_agent.capture.base import CaptureTarget, Export, Plan
from compute_agent.capture.servers import Servers

LOG = logging.getLogger(__name__)


class OverlayCapture:
    """External overlays on one or several disks, put on at one instant."""

    method = "overlay"
    pausable = True

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._guest = plan.guest
        self._servers = Servers(plan.workspace)

    def prepare(self) -> None:
        """Check for space, make the overlays, flush the images."""
        targets = self._plan.targets
        space.require_space(
            [(self.overlay_path(one).parent, one.capacity_bytes) for one in targets],
            self._plan.scratch_reserve_percent,
        )
        self._plan.workspace.make(space.owner_of(targets[0].path))
        for target in targets:
            overlay = self.overlay_path(target)
            qemu_img.create_overlay(
                overlay,
                backing_file=target.path,
                backing_format=target.disk.format,
                size_bytes=target.capacity_bytes,
            )
            os.chown(overlay, *space.owner_of(target.path))
        space.flush([target.path for target in targets])

    def begin(self) -> None:
        """Switch the guest over: the instant is QEMU's `transaction` inside this call."""
        self._guest.switch_to_overlays(
            {target.name: str(self.overlay_path(target)) for target in self._plan.targets}
        )

    def exports(self) -> tuple[Export, ...]:
        """Serve the disks, which now stand still, and return the exports."""
        for target in self._plan.targets:
            self._servers.serve(target)
        return tuple(self._servers.export(target) for target in self._plan.targets)

    def growing(self) -> tuple[Path, ...]:
        """Return the overlays."""
        return tuple(self.overlay_path(target) for target in self._plan.targets)

    def end(self) -> None:
        """Stop reading, merge what the guest wrote meanwhile, and remove the overlays."""
        self._servers.stop()
        for target in self._plan.targets:
            try:
                self._put_back(target)
            except InstanceNotFound:
                self.overlay_path(target).unlink(missing_ok=True)
        self._plan.workspace.remove()

    def overlay_path(self, target: CaptureTarget) -> Path:
        """Return where a disk's overlay lies: beside a file, in the scratch for a device."""
        name = self._plan.workspace.scratch.name
        if target.disk.source_type == "file":
            return Path(f"{target.path}.stillframe-{name}")
        return self._plan.workspace.scratch_file(target.name)

    def _put_back(self, target: CaptureTarget) -> None:
        overlay = self.overlay_path(target)
        if self._guest.source_path(target.name) == str(overlay):
            LOG.info("Merging what was written to %s meanwhile", target.name)
            if self._guest.is_active():
                self._guest.merge_overlay(target.name, target.path)
            else:
                qemu_img.commit(overlay, base=target.path)
                self._guest.point_disk_at(target.name, target.path, target.disk.format)
        if self._guest.source_path(target.name) != str(overlay):
            overlay.unlink(missing_ok=True)
