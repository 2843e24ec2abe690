# SPDX-License-Identifier: Apache-2.0
"""What every capture method offers to the pipeline in `snapshot`.

A capture is made for one job. `prepare` does all that can be done beforehand,
`begin` fixes the instant (it is the only thing inside the pause), `export`
says where to read, `end` gives everything back. `end` may be called at any
time, more than once, and after a crash on a capture made anew from the journal.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from compute_agent.guest.description import Disk


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The frozen, readable view: an NBD export called `name` on the unix socket `socket_path`."""

    socket_path: str
    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaptureTarget:
    """The disk that a capture is of."""

    disk: Disk
    capacity_bytes: int


class Capture(Protocol):
    """One capture method at work for one job."""

    #: "backup", "offline" ...: as in logs, image properties and configuration.
    method: str
    #: The guest runs, so a pause makes sense.
    pausable: bool

    def prepare(self) -> None:
        """Do all that needs no stop: space, scratch, directories, flush."""

    def begin(self) -> None:
        """Fix the instant."""

    def export(self) -> Export:
        """Return where the frozen view is read."""

    def end(self) -> None:
        """Give back whatever `prepare` and `begin` made; safe to repeat."""
