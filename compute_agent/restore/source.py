# SPDX-License-Identifier: Apache-2.0
"""What an image is by Glance's record, and whether a disk may be made of it.

Only records are looked at; nothing is fetched. Called by `restorer`.
"""

from __future__ import annotations

import logging

from common import flatten
from common.glance import Image, ImageService
from compute_agent.restore.errors import ImageTooLarge, UnusableImage
from compute_agent.restore.model import RestoreSettings

LOG = logging.getLogger(__name__)

_GIB = 1 << 30


def look(
    images: ImageService, image_id: str, settings: RestoreSettings, *, most_bytes: int
) -> list[Image]:
    """Return the records of an image and, if it is an increment, of all that it lies on.

    The topmost comes first. Raises ImageNotFound, UnusableImage, ImageTooLarge,
    BrokenChain, ForeignParent, ImageServiceUnavailable.
    """
    image = images.show(image_id)
    _require_usable(image, settings)
    if image.min_disk_gib * _GIB > most_bytes:
        raise ImageTooLarge(
            f"image {image.id} asks for a disk of {image.min_disk_gib} GiB, and this one has "
            f"{most_bytes / _GIB:.2f} GiB"
        )
    if (image.virtual_bytes or 0) > most_bytes:
        # As Glance has seen it; what it turns out to be is compared as well.
        raise ImageTooLarge(
            f"image {image.id} holds a disk of {image.virtual_bytes} bytes, and there is room for "
            f"{most_bytes}"
        )
    if flatten.PARENT_PROPERTY not in image.properties:
        return [image]
    # An increment: the rules for what it may lie on are flatten's.
    chain = flatten.chain_of(images, image_id)
    LOG.info("Image %s is an increment on %d others", image_id, len(chain) - 1)
    for below in chain:
        _require_usable(below, settings)
    return chain


def _require_usable(image: Image, settings: RestoreSettings) -> None:
    if image.status != "active":
        raise UnusableImage(f"image {image.id} is {image.status}, not active")
    if image.container_format != "bare":
        raise UnusableImage(
            f"image {image.id} is in a container of format {image.container_format}; a disk can "
            "only be made of a bare one"
        )
    if image.disk_format not in settings.formats:
        allowed = ", ".join(sorted(settings.formats))
        raise UnusableImage(
            f"image {image.id} is of format {image.disk_format}; a disk can be made of {allowed}"
        )
    if not image.size_bytes:
        raise UnusableImage(f"image {image.id} is empty")
