# SPDX-License-Identifier: Apache-2.0
"""Where the instances live that this agent makes: a directory for each, named by its id.

    ID/disk          the root disk, qcow2
    ID/console.log   what the guest says on its first serial port
    ID/fetched/      the image on its way; gone when the instance runs
    ID/unfinished    there until the instance is made: what has it after a crash is removed
    .ID/             one that is just being set up, or all but removed: so ID has the mark from its
                     first moment on, and to its last
    agent.lock       held by the agent whose directory it is

Nothing outside is ever removed, and nothing inside without an owner.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from common.errors import ConfigurationError, JobFailed
from compute_agent import lock

LOG = logging.getLogger(__name__)

#: QEMU's user must get through to its files, and see nothing else.
_ROOT_MODE = 0o711
_FETCHED_MODE = 0o700
_DISK_MODE = _CONSOLE_MODE = 0o600
_GIB = 1 << 30
#: What renaming a directory to a name says that something else has.
_IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})
#: No instance is called so.
_LOCK = "agent.lock"


class PlaceTaken(JobFailed):
    """The host keeps files of an instance of that id already, which nobody may overwrite."""

    code = "instance_exists"


class PlaceUnusable(JobFailed):
    """The directory of a new instance cannot be made, or an old one's not removed."""

    code = "instances_directory_unusable"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One instance's directory."""

    directory: Path

    @property
    def instance_uuid(self) -> str:
        """Whose it is."""
        return self.directory.name

    @property
    def disk(self) -> Path:
        """The root disk."""
        return self.directory / "disk"

    @property
    def console(self) -> Path:
        """What the guest says."""
        return self.directory / "console.log"

    @property
    def fetched(self) -> Path:
        """The image on its way."""
        return self.directory / "fetched"

    @property
    def _unfinished(self) -> Path:
        return self.directory / "unfinished"

    @property
    def _hidden(self) -> Path:
        return self.directory.with_name(f".{self.directory.name}")

    def require_free(self) -> None:
        """Raise PlaceTaken if there is anything."""
        if os.path.lexists(self.directory):
            raise PlaceTaken("the host has files of an instance of this id already")

    def make(self) -> None:
        """Make it, for an instance that is not made yet; raise PlaceTaken or PlaceUnusable."""
        self.require_free()
        self.remove_hidden()
        hidden = Place(directory=self._hidden)
        try:
            hidden.directory.mkdir()
            hidden._unfinished.touch()
            # Whatever this daemon's umask is.
            hidden.directory.chmod(_ROOT_MODE)
            hidden.fetched.mkdir(mode=_FETCHED_MODE)
            # libvirt gives it to QEMU's user, if it is there.
            hidden.console.touch(mode=_CONSOLE_MODE)
            _sync(hidden.directory)
            # Whatever begins after this moment, a crash finds it to be unfinished.
            hidden.directory.rename(self.directory)
            _sync(self.directory.parent)
        except OSError as error:
            LOG.error("%s cannot be made: %s", self.directory, error)
            shutil.rmtree(self._hidden, ignore_errors=True)
            if error.errno in _IN_THE_WAY:
                raise PlaceTaken("the host has files of an instance of this id already") from error
            raise PlaceUnusable(f"the host cannot keep a new instance: {error.strerror}") from error

    def finish(self) -> None:
        """The instance is made: from now on it is not removed but by its deletion."""
        shutil.rmtree(self.fetched, ignore_errors=True)
        self._unfinished.unlink(missing_ok=True)
        _sync(self.directory)

    def is_unfinished(self) -> bool:
        """Tell whether what is there belongs to an instance that was never made."""
        return self.is_marked() or self._hidden.exists()

    def is_marked(self) -> bool:
        """Tell whether the directory is there, and of an instance that was never made."""
        return self._unfinished.exists()

    def remove(self) -> None:
        """Remove it and all that is in it; one that is gone is fine. Raises PlaceUnusable."""
        self.remove_hidden()
        with self._removing():
            if not self.directory.exists():
                return
            # What is half removed belongs to nobody.
            self._unfinished.touch()
            # The mark goes last: what is left by a crash in between is still swept.
            for path in self.directory.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != self._unfinished:
                    path.unlink()
            self.directory.rename(self._hidden)
        self.remove_hidden()
        _sync(self.directory.parent)

    def remove_hidden(self) -> None:
        """Remove what a crash left while it was set up or removed. Raises PlaceUnusable."""
        with self._removing():
            if self._hidden.exists():
                shutil.rmtree(self._hidden)

    @contextlib.contextmanager
    def _removing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            LOG.error("%s cannot be removed: %s", self.directory, error)
            raise PlaceUnusable(
                f"the host cannot remove the instance's files: {error.strerror}"
            ) from error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The directory of all of them."""

    root: Path

    def make(self) -> None:
        """Create it at start; raise ConfigurationError naming the option if that fails."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.root.chmod(_ROOT_MODE)
        except OSError as error:
            raise ConfigurationError(
                f"[spawn] instances_directory = {self.root} cannot be used: {error.strerror}; "
                "name a directory that this daemon's user may create and own"
            ) from error

    def hold(self, host: str) -> IO[str] | None:
        """Keep it from other agents while this process lives: they would remove what is unfinished.

        Raises ConfigurationError if another has it. None: its file system has no locks.
        """
        try:
            return lock.hold(self.root / _LOCK, host)
        except lock.Held as other:
            raise ConfigurationError(
                f"another agent ({other}) uses [spawn] instances_directory = {self.root}; "
                f"stop it, or give this one a directory of its own (host = {host})"
            ) from None
        except OSError as error:
            LOG.warning(
                "[spawn] instances_directory = %s cannot be locked (%s): see to it that no other "
                "agent uses it",
                *(self.root, error.strerror),
            )
            return None

    def of(self, instance_uuid: str) -> Place:
        """Return an instance's own; nothing is created yet."""
        return Place(directory=self.root / str(uuid.UUID(instance_uuid)))

    def unfinished(self) -> list[str]:
        """Return the instances that were begun and never made, by id."""
        found = set()
        for path in self.root.iterdir() if self.root.is_dir() else ():
            name = path.name.removeprefix(".")
            try:
                place = self.of(name)
            except ValueError:
                continue  # nothing of ours
            if path in (place.directory, place._hidden) and place.is_unfinished():
                found.add(name)
        return sorted(found)

    def free_disk_gib(self) -> int:
        """Return how many GiB new disks may take; 0 where that cannot be told."""
        try:
            return shutil.disk_usage(self.root).free // _GIB
        except OSError as error:
            LOG.warning("%s cannot be looked at: %s", self.root, error)
            return 0


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
