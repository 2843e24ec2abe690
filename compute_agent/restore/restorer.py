# SPDX-License-Identifier: Apache-2.0
"""The door of the package: `prove` an image, then `build` a disk of it. Start reading here.

    source ▶ fetch (hashes, inspection) ▶ tool (second opinion) ▶ ProvenImage ▶ build ▶ BuiltDisk

Called by the jobs that make disks. Nothing here touches a guest or its disks:
everything is written to the caller's directory and to paths that did not exist.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from common import flatten
from common.glance import Image, ImageService
from common.states import TaskState
from compute_agent.restore import build, source
from compute_agent.restore.fetch import Fetcher
from compute_agent.restore.inspection import Verdict
from compute_agent.restore.model import (
    BuiltDisk,
    DiskWish,
    ProvenImage,
    RestoreSettings,
    Work,
)
from compute_agent.restore.progress import Told
from compute_agent.restore.room import Rooms
from compute_agent.restore.tool import Tool
from compute_agent.stream.throttle import Throttle

LOG = logging.getLogger(__name__)


class Restorer:
    """Makes disks of images; thread-safe. `throttle` is the host's, shared by all jobs."""

    def __init__(self, images: ImageService, throttle: Throttle, settings: RestoreSettings) -> None:
        self._images = images
        self._throttle = throttle
        self._settings = settings
        self._rooms = Rooms(settings.min_free_bytes)

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
        most_bytes = min(most_bytes, self._settings.max_virtual_bytes)
        chain = source.look(self._images, image_id, self._settings, most_bytes=most_bytes)
        total = sum(image.size_bytes or 0 for image in chain)
        told = Told(
            job,
            task_state,
            bytes_total=total,
            log_interval_s=self._settings.progress_log_interval_s,
        )
        fetcher = Fetcher(
            self._images,
            self._throttle,
            self._settings,
            self._rooms,
            job,
            told,
            most_bytes=most_bytes,
        )
        files = [directory / image.id for image in chain]
        try:
            with self._rooms.promised(directory, files, total, chain[0]):
                return self._proven(job, chain, directory, fetcher)
        except BaseException:
            _empty(directory)
            raise

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
        return build.build(job, proven, wish, self._settings, self._rooms)

    def _proven(
        self, job: Work, chain: list[Image], directory: Path, fetcher: Fetcher
    ) -> ProvenImage:
        image = chain[0]
        verdicts: list[Verdict] = []
        if len(chain) == 1:
            path = directory / image.id
            tool = Tool(image.id, self._settings, job)
            verdict = tool.second_opinion(path, fetcher.fetch(image, path))
        else:
            path = flatten.fetch_chain(
                chain, directory, lambda one, to: verdicts.append(fetcher.fetch(one, to))
            )
            # The whole must be read through the chain; the topmost file was fetched last.
            verdict = dataclasses.replace(verdicts[-1], is_disk=False)
        LOG.info(
            "Image %s is a sound %s of %d bytes", image.id, verdict.format, verdict.virtual_bytes
        )
        return ProvenImage(
            image=image,
            path=path,
            format=verdict.format,
            virtual_bytes=verdict.virtual_bytes,
            is_disk=verdict.is_disk,
        )


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
