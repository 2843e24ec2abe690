# SPDX-License-Identifier: Apache-2.0
"""What every capture method offers to the pipeline in `snapshot`.

A capture is made for one job and one or several disks of one guest. `prepare`
does all that can be done beforehand, `begin` fixes the instant of all disks (it
is the only thing inside the pause), `exports` says where to read, `end` gives
everything back. `end` may be called at any time, more than once, and after a
crash on a capture made anew from the journal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from compute_agent.capture import space
from compute_agent.capture.space import Reservations
from compute_agent.capture.workspace import Workspace
from compute_agent.guest.description import Disk
from compute_agent.guest.domain import Guest


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The frozen, readable view of the disk `target`.

    An NBD export called `name` on the unix socket `socket_path`. With
    `changes` it also offers that meta context: what was written since the
    checkpoint that an increment is relative to.
    """

    target: str
    socket_path: str
    name: str
    changes: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaptureTarget:
    """One disk that a capture is of; `path` is its file or device."""

    disk: Disk
    capacity_bytes: int

    @property
    def name(self) -> str:
        """The disk's name in the guest ("vda")."""
        return self.disk.target

    @property
    def path(self) -> str:
        """The disk's file or device."""
        return self.disk.path or ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a capture is made from."""

    guest: Guest
    targets: tuple[CaptureTarget, ...]
    workspace: Workspace
    #: Free space that the guest's writes must find, as a share of the disks' size.
    scratch_reserve_percent: int = 0
    #: The checkpoint that an increment is relative to.
    since: str | None = None
    #: The room that the host's open captures were promised.
    reservations: Reservations = dataclasses.field(default_factory=Reservations)

    def owner(self) -> tuple[int, int]:
        """Return uid and gid of QEMU's user, or, where libvirt does not tell, of the first disk."""
        return self.guest.process_owner() or space.owner_of(self.targets[0].path)

    def take_room(self, needs: Collection[tuple[Path, int]]) -> None:
        """Have the job promised what its files will grow by; raise CaptureFailed without room."""
        self.reservations.take(self.workspace.scratch.name, needs, self.scratch_reserve_percent)

    def hold_room(self, needs: Collection[tuple[Path, int]]) -> None:
        """Have it promised anew, unasked, to a view that stands."""
        self.reservations.hold(self.workspace.scratch.name, needs, self.scratch_reserve_percent)

    def others_bytes(self, directory: Path) -> int:
        """Return what the job must leave to others of a directory's file system."""
        return self.reservations.others_bytes(self.workspace.scratch.name, directory)

    def release_room(self) -> None:
        """Give it to others; harmless if there is none."""
        self.reservations.release(self.workspace.scratch.name)


class Capture(Protocol):
    """One capture method at work for one job."""

    #: "backup", "offline" ...: as in logs, image properties and configuration.
    method: str
    #: The guest runs, so a pause makes sense.
    pausable: bool
    #: The checkpoint that what is read is relative to; None: whole disks are read.
    since: str | None

    def prepare(self) -> None:
        """Do all that needs no stop: space, scratch, directories, flush."""

    def hold_room(self) -> None:
        """Promise its room anew to a view that stands: an earlier agent's promises went with it."""

    def begin(self) -> None:
        """Fix the instant of every disk."""

    def exports(self) -> tuple[Export, ...]:
        """Return where the frozen views are read, in the order of the targets."""

    def growing(self) -> tuple[Path, ...]:
        """Return the files that the guest's writes make grow while the view is open."""

    def reserve_bytes(self) -> int:
        """Return what must stay free, beyond the configured minimum, for `end` to succeed."""

    def end(self) -> None:
        """Give back whatever `prepare` and `begin` made; safe to repeat."""
