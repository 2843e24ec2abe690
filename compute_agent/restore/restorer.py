# SPDX-License-Identifier: Apache-2.0
"""The door of the package: `prove` an image, then `build` a disk of it. Start reading here.

    Glance ─ source ─▶ fetch (hash, inspection) ─▶ verdict ─▶ ProvenImage ─ build ─▶ BuiltDisk

Called by the jobs that make disks. Nothing here touches a guest or its disks:
everything is written to the caller's directory and to paths that did not exist.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Protocol

from common.glance import Image, ImageService
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
    #: What qemu-img may take of memory and of processor time while it reads an image.
    qemu_img_address_space_bytes: int
    qemu_img_cpu_s: int


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


class Restorer:
    """Makes disks of images; thread-safe. `throttle` is the host's, shared by all jobs."""

    def __init__(
        self, images: ImageService, throttle: Throttle, settings: RestoreSettings
    ) -> None:
        self._images = images
        self._throttle = throttle
        self._settings = settings

    def prove(
        self,
        job: Work,
        image_id: str,
        directory: Path,
        *,
        most_bytes: int,
        task_state: TaskState | None,
    ) -> ProvenImage:
        """Fetch an image, and all that it lies on, and make sure that it is what it claims.

        `directory` exists, is private (0700) and empty; everything is written into it,
        and the caller removes it, whatever happens. When an exception is raised it is
        empty again. `most_bytes` is the size of the disk that the image is for. Progress
        is told to the job, under `task_state`.

        Raises, with a message that a tenant may read:
        ImageNotFound; UnusableImage (not active, a format that is not allowed);
        ImageTooLarge; BrokenChain and ForeignParent (an increment's parents); UnsafeImage
        (the content is not what the record says, or names files of this host); VerifyFailed
        (other bytes than Glance hashed); NoRoom; ImageServiceUnavailable (after the
        retries); QemuImgError; and, within a second of its end being asked for, the
        job's own reason.
        """
        raise NotImplementedError

    def build(self, job: Work, proven: ProvenImage, wish: DiskWish) -> BuiltDisk:
        """Make the disk that was wished for; the image's files may be used up by that.

        A proven image that can be the disk is moved there, provided that it is on the same
        file system; all else is converted. Everything is synced, the directories too. When an
        exception is raised neither `wish.path` nor `wish.base_path` exists; after a kill
        it is for the caller, who knows them, to remove them. `prove` is needed anew then.

        Raises ImageTooLarge (the image's disk is larger than wished), NoRoom,
        UnsafeImage (qemu-img cannot read the image within its limits), QemuImgError,
        and the job's own reason.
        """
        raise NotImplementedError
