# SPDX-License-Identifier: Apache-2.0
"""What goes in and out of the package, as plain values; `restorer` is the door."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Protocol

from common.glance import Image
from common.states import TaskState
from compute_agent.stream.throttle import Throttle


class Work(Protocol):
    """The job that a disk is made for (`compute_agent.jobs.Job` is one)."""

    #: Set when the work must end.
    stopped: threading.Event
    #: The job's own bound on what it reads, below the host's.
    throttle: Throttle

    def raise_if_stopped(self) -> None:
        """Raise the reason if the work was asked to end."""

    def tell(
        self,
        task_state: TaskState | None,
        *,
        bytes_done: int = 0,
        bytes_total: int = 0,
        rate_bytes_s: float = 0.0,
        eta_s: float | None = None,
    ) -> None:
        """Report where the job stands."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSettings:
    """The options of [restore], as plain values."""

    #: Glance's words for the formats that may be restored.
    formats: frozenset[str]
    #: No disk is made that is larger than this, whatever was asked for.
    max_virtual_bytes: int
    #: What stays free on a file system, whatever is fetched and built.
    min_free_bytes: int
    #: How often a download that broke off is begun again.
    retries: int
    #: What qemu-img may take of memory, and of time (processor or not), for one image.
    qemu_img_memory_bytes: int
    qemu_img_timeout_s: int
    progress_log_interval_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProvenImage:
    """An image as files of this host: whole, hashed, inspected, harmless.

    `path` is the topmost file; an increment's lies on others, in the same directory.
    """

    image: Image
    path: Path
    #: As qemu knows it: "qcow2", "raw", "vmdk", "vdi", "vpc", "vhdx".
    format: str
    #: Size of the disk that it holds.
    virtual_bytes: int
    #: A guest may write to the file as it is: nothing below it, nothing compressed.
    is_disk: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DiskWish:
    """What the new disk shall be. No path may exist; their directories do."""

    path: Path
    #: "qcow2" or "raw"; with a base it must be "qcow2".
    format: str
    #: Virtual size; an image's own may be less, never more.
    size_bytes: int
    #: Uid and gid of the files; None: as this process makes them.
    owner: tuple[int, int] | None = None
    mode: int = 0o600
    #: Put the image's data here and let `path` be an empty overlay on it; None: one file.
    base_path: Path | None = None
    base_format: str = "raw"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuiltDisk:
    """A disk that is written, synced and owned as wished; nobody has it open."""

    path: Path
    format: str
    size_bytes: int
    base_path: Path | None = None
    base_format: str | None = None
