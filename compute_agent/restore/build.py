# SPDX-License-Identifier: Apache-2.0
"""Makes a disk of a proven image: moved where it can be the disk as it is, else converted.

Called by `restorer`. Whatever goes wrong, none of the new files is left.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from common import qemu_img
from compute_agent.restore.errors import ImageTooLarge
from compute_agent.restore.model import BuiltDisk, DiskWish, ProvenImage, RestoreSettings, Work
from compute_agent.restore.room import Rooms
from compute_agent.restore.tool import Tool

LOG = logging.getLogger(__name__)


def build(
    job: Work, proven: ProvenImage, wish: DiskWish, settings: RestoreSettings, rooms: Rooms
) -> BuiltDisk:
    """Make the disk; see `Restorer.build` for what is promised and raised."""
    if proven.virtual_bytes > wish.size_bytes:
        raise ImageTooLarge(
            f"image {proven.image.id} holds a disk of {proven.virtual_bytes} bytes, and this one "
            f"has {wish.size_bytes}: a disk is never shrunk"
        )
    made = [wish.path, *([wish.base_path] if wish.base_path else [])]
    for path in made:
        if os.path.lexists(path):
            # Not ours to overwrite, nor to remove below.
            raise FileExistsError(f"{path} exists")
    try:
        _place(job, proven, wish, settings, rooms)
        if wish.base_path is not None:
            qemu_img.create_overlay(
                wish.path,
                backing_file=wish.base_path,
                backing_format=wish.base_format,
                size_bytes=wish.size_bytes,
            )
        for path in made:
            _hand_over(path, wish)
        job.raise_if_stopped()
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    LOG.info("Built a disk of image %s: %s, %d bytes", *_told(proven, wish))
    return BuiltDisk(
        path=wish.path,
        format=wish.format,
        size_bytes=wish.size_bytes,
        base_path=wish.base_path,
        base_format=wish.base_format if wish.base_path else None,
    )


def _place(
    job: Work, proven: ProvenImage, wish: DiskWish, settings: RestoreSettings, rooms: Rooms
) -> None:
    """Put the image's data where they belong, in the right format, and grow one whole disk."""
    target, target_format = wish.path, wish.format
    if wish.base_path is not None:
        target, target_format = wish.base_path, wish.base_format
    if _can_move(proven, target, target_format):
        proven.path.rename(target)
    else:
        tool = Tool(proven.image.id, settings, job)
        needed_bytes = tool.measure(proven.path, proven.format)
        with rooms.promised(target.parent, [target], needed_bytes, proven.image):
            LOG.info("Converting image %s to %s", proven.image.id, target_format)
            # A raw file is as long as the disk, whatever of it is a hole.
            most_bytes = proven.virtual_bytes if target_format == "raw" else needed_bytes
            tool.convert(proven.path, proven.format, target, target_format, most_bytes=most_bytes)
        proven.path.unlink()
    if wish.base_path is None and proven.virtual_bytes < wish.size_bytes:
        qemu_img.grow(target, target_format, wish.size_bytes)


def _can_move(proven: ProvenImage, target: Path, target_format: str) -> bool:
    return (
        proven.is_disk
        and proven.format == target_format
        and proven.path.stat().st_dev == target.parent.stat().st_dev
    )


def _hand_over(path: Path, wish: DiskWish) -> None:
    """Give a file to its owner, and make sure that it outlives a crash of the host."""
    if wish.owner is not None:
        os.chown(path, *wish.owner)
    path.chmod(wish.mode)
    for what in (path, path.parent):
        descriptor = os.open(what, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _told(proven: ProvenImage, wish: DiskWish) -> tuple[str, str, int]:
    layout = f"{wish.format} on a base" if wish.base_path else wish.format
    return proven.image.id, layout, wish.size_bytes
