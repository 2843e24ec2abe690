# SPDX-License-Identifier: Apache-2.0
"""The files and sockets of one job, in two directories named after it.

Scratch lies on disk, the NBD socket below /run; both in a directory of their
own that belongs to QEMU's user, so that nobody else gets at them and whatever
is left after a crash is found by the job's id. Names are short on purpose:
QEMU reads its monitor byte by byte inside the pause, and a socket's path may
have 107 bytes.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from pathlib import Path

from common.errors import ConfigurationError

LOG = logging.getLogger(__name__)

_SOCKET_PATH_MAX_BYTES = 107
#: Disks are called vda, vdb ... and, on hosts with hundreds of them, vdaa.
_TARGET_MAX_BYTES = 4
#: QEMU's user must get through to its own directory, and see nothing else.
_ROOT_MODE = 0o711
_JOB_MODE = 0o700


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Directories:
    """Where jobs may put things: `scratch` on a file system with room, `sockets` below /run."""

    scratch: Path
    sockets: Path

    def make(self) -> None:
        """Create both at start; raise ConfigurationError naming the option if that fails."""
        for option, path in (
            ("scratch_directory", self.scratch),
            ("socket_directory", self.sockets),
        ):
            try:
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(_ROOT_MODE)
            except OSError as error:
                raise ConfigurationError(
                    f"[capture] {option} = {path} cannot be used: {error.strerror}; "
                    "name a directory that this daemon's user may create and own"
                ) from error
        longest = len(os.fsencode(self.sockets / ("x" * 8) / ("x" * _TARGET_MAX_BYTES)))
        if longest > _SOCKET_PATH_MAX_BYTES:
            raise ConfigurationError(
                f"[capture] socket_directory is too long: a socket in it needs {longest} bytes of "
                f"path, the system allows {_SOCKET_PATH_MAX_BYTES}"
            )

    def of_job(self, job_id: str) -> Workspace:
        """Return the job's own places; nothing is created yet."""
        short = job_id.replace("-", "")[:8]
        return Workspace(scratch=self.scratch / short, sockets=self.sockets / short)

    def leftovers(self) -> list[Workspace]:
        """Return the places of every job that has any, for recovery at start."""
        names = {
            path.name
            for root in (self.scratch, self.sockets)
            if root.is_dir()
            for path in root.iterdir()
            if path.is_dir()
        }
        return [
            Workspace(scratch=self.scratch / name, sockets=self.sockets / name)
            for name in sorted(names)
        ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """The two directories of one job."""

    scratch: Path
    sockets: Path

    def scratch_file(self, target: str) -> Path:
        """Return where the blocks of a disk wait that the guest overwrites before they are read."""
        return self.scratch / target

    def socket_path(self, target: str = "nbd") -> Path:
        """Return the socket of an NBD server: of one disk, or of all together."""
        return self.sockets / target

    def make(self, owner: tuple[int, int]) -> None:
        """Create both directories for QEMU's user; `owner` is its uid and gid."""
        for path in (self.scratch, self.sockets):
            path.mkdir(mode=_JOB_MODE, exist_ok=True)
            os.chown(path, *owner)

    def remove(self) -> None:
        """Remove both directories and what is in them; safe to repeat."""
        for path in (self.scratch, self.sockets):
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                LOG.warning("Could not remove %s; the next start tries again", path)
