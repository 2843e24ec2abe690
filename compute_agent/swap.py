# SPDX-License-Identifier: Apache-2.0
"""Puts a new disk in the place of an old one, and either back, by names alone.

At every instant `path` is one whole disk: the old one gets a second name (a link)
before the new one is renamed over it. Whatever a rebuild makes lies in one directory
beside the disk, its room, so what is there tells after a crash how far it was:

    no `old` in the room     the disk is what it was (or the swap is settled)
    `old` is the disk itself the link was made, and nothing else
    `old` is another file    swapped

Called by `rebuild` and `put_back`. Nobody may have the disk open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)

_ROOM_MODE = 0o700
_NAME_MAX = 255
_BASE_MARK = "stillframe-base"
#: Of the old file's extended attributes, those that say who may open it.
_LABELS = ("security.selinux",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """One disk's change: where all its files are. `base` lies below the new one, if it has one."""

    path: Path
    room: Path
    base: Path | None = None
    #: Lies below the old disk, and an earlier rebuild has made it for that alone.
    old_base: Path | None = None

    @classmethod
    def of(cls, path: Path, job_id: str, *, below: Path | None) -> Swap:
        """Return the change that a job makes to a disk, `below` being what it lies on."""
        digits = job_id.replace("-", "")
        short, bases = digits[:8], (digits[:8], digits[8:16])
        is_ours = below is not None and below.parent == path.parent and _is_base(path, below)
        return cls(
            path=path,
            room=path.with_name(f"{path.name}.stillframe-{short}"),
            base=_base_beside(path, bases, below) if below else None,
            old_base=below if is_ours else None,
        )

    @classmethod
    def has_names(cls, path: Path) -> bool:
        """Tell whether the names that a change needs fit beside a disk: 255 bytes, as on Linux."""
        longest = cls.of(path, "0" * 8, below=path).base
        return longest is None or len(os.fsencode(longest.name)) <= _NAME_MAX

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Swap:
        """Return it as it stands in the journal."""
        return cls(**{name: Path(path) if path else None for name, path in facts.items()})  # type: ignore[arg-type]

    def facts(self) -> dict[str, Any]:
        """Return what the journal keeps of it."""
        return {
            field.name: str(value) if (value := getattr(self, field.name)) else None
            for field in dataclasses.fields(self)
        }

    @property
    def new(self) -> Path:
        """Where the new disk is until it takes the old one's place."""
        return self.room / "new"

    @property
    def old(self) -> Path:
        """The old disk's second name."""
        return self.room / "old"

    def make_room(self) -> None:
        """Create the room; whatever lies there is of an earlier try."""
        self.discard()
        self.room.mkdir(mode=_ROOM_MODE)
        _sync(self.path.parent)

    def swap(self) -> None:
        """Put the new disk in the old one's place, owned and labelled as that is now."""
        _make_alike(self.new, self.path)
        if self.base is not None:
            _make_alike(self.base, self.path)
        os.link(self.path, self.old)
        _sync(self.room)
        self.new.rename(self.path)
        _sync(self.path.parent)

    def is_swapped(self) -> bool:
        """Tell whether the disk is the new one, and the old one there to be put back."""
        return self.old.exists() and not _is_same(self.old, self.path)

    def put_back(self) -> None:
        """Make the disk what it was, and remove whatever was made; safe to repeat."""
        if self.is_swapped():
            self.old.rename(self.path)
            _sync(self.path.parent)
        self.discard()

    def settle(self) -> None:
        """Remove the old disk, and what lay below it for it alone; safe to repeat."""
        _remove(self.room)
        if self.old_base is not None:
            self.old_base.unlink(missing_ok=True)
        _sync(self.path.parent)

    def discard(self) -> None:
        """Remove what was made. The disk must not be the new one."""
        # The room goes last: as long as it is there, a crash finds that not all is gone.
        if self.base is not None:
            self.base.unlink(missing_ok=True)
        _remove(self.room)
        _sync(self.path.parent)


def _base_beside(path: Path, marks: Sequence[str], below: Path) -> Path:
    """Return a name for a base; one in use already is that of an earlier job of the same id."""
    names = (path.with_name(f"{path.name}.{_BASE_MARK}-{mark}") for mark in marks)
    return next(name for name in names if name != below)


def _is_base(path: Path, below: Path) -> bool:
    return below.name.startswith(f"{path.name}.{_BASE_MARK}-")


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _make_alike(path: Path, model: Path) -> None:
    """Give a file the owner, the mode and the label of another one."""
    status = model.stat()
    os.chown(path, status.st_uid, status.st_gid)
    path.chmod(status.st_mode & 0o7777)
    for label in _LABELS:
        # A system without labels has none to give.
        with contextlib.suppress(OSError):
            os.setxattr(path, label, os.getxattr(model, label))


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        LOG.warning("Could not remove %s; it holds nothing that is needed", directory)


def _sync(directory: Path) -> None:
    """Make names last over a crash of the host; where there is no directory, there are none."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
