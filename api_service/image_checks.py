# SPDX-License-Identifier: Apache-2.0
"""Whether an instance's disk may be made of an image, as far as its record tells.

Asked before anything is reserved, so that a wrong image is a 400 in Nova's words
and nothing has happened. What lies in the image's data is the agent's to judge.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from api_service.errors import BadRequest
from common.context import RequestContext
from common.glance import Image, ImageNotFound, ImageRefused
from common.reports import Flavor

_GIB = 1 << 30
#: Who sees an image that is not their own, by its id.
_ANYBODYS = frozenset({"public", "community"})
_SHARED = "shared"
_ARCHITECTURE = ("hw_architecture", "architecture")
#: Nova's list (nova.objects.fields.Architecture), and what it takes for one of them.
_ARCHITECTURES = frozenset(
    """
    aarch64 alpha armv6 armv7l armv7b cris i686 ia64 lm32 m68k microblaze microblazeel mips mipsel
    mips64 mips64el openrisc parisc parisc64 ppc ppcle ppc64 ppc64le ppcemb s390 s390x sh4 sh4eb
    sparc sparc64 unicore32 x86_64 xtensa xtensaeb
    """.split()  # noqa: SIM905 # as words it can be read
)
_SYNONYMS = {"i386": "i686", "i486": "i686", "i586": "i686", "amd64": "x86_64"}


class ImageLooks(Protocol):
    """What is asked of Glance (common.glance.ImageService)."""

    def look(self, image_id: str) -> Any:
        """Return a record, in one try."""

    def members(self, image_id: str) -> Any:
        """Return the projects that a shared image is shared with."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What the image must fit: the instance's size and, where it is known, its architecture."""

    flavor: Flavor
    architecture: str | None = None


def usable_image(
    images: ImageLooks, caller: RequestContext, image_id: str, fit: Fit, *, is_admin: bool, use: str
) -> Image:
    """Return the image; raise BadRequest unless this caller may make such a disk of it.

    `use` ends Nova's sentence for an image that is not there, or not for this caller
    ("rebuild"). Our calls to Glance see every project's images, so whether the caller
    does is decided here, by Glance's rules. Raises ImageServiceUnavailable.
    """
    image = _seen(images, caller, image_id, is_admin=is_admin)
    if image is None:
        raise BadRequest(f"Cannot find image for {use}")
    if image.status != "active":
        raise BadRequest(f"Image {image_id} is not active.")
    _require_size(image, fit.flavor)
    _require_architecture(image, fit.architecture)
    return image


def architecture_of(image_properties: dict[str, str]) -> str | None:
    """Return the architecture that an image's properties name, in Nova's spelling.

    Raises BadRequest for a word that is none.
    """
    named = next((image_properties[key] for key in _ARCHITECTURE if key in image_properties), None)
    if named is None:
        return None
    name = _SYNONYMS.get(named.lower(), named.lower())
    if name not in _ARCHITECTURES:
        raise BadRequest(f"Architecture name '{named[:64]}' is not recognised")
    return name


def _seen(
    images: ImageLooks, caller: RequestContext, image_id: str, *, is_admin: bool
) -> Image | None:
    try:
        image: Image = images.look(image_id)
        is_own = caller.project_id is not None and image.owner == caller.project_id
        if is_admin or is_own or image.visibility in _ANYBODYS:
            return image
        is_member = image.visibility == _SHARED and caller.project_id in images.members(image_id)
    except (ImageNotFound, ImageRefused):
        return None
    return image if is_member else None


def _require_size(image: Image, flavor: Flavor) -> None:
    """Raise BadRequest, in Nova's words, for an image that needs a larger instance.

    A flavor without a disk (0 GiB) leaves its size to the image.
    """
    disk_bytes = flavor.disk_gib * _GIB
    if image.min_ram_mib > flavor.memory_mib:
        raise BadRequest("Flavor's memory is too small for requested image.")
    if not disk_bytes:
        return
    image_bytes = max(image.size_bytes or 0, image.virtual_bytes or 0)
    if image_bytes > disk_bytes:
        raise BadRequest(
            "Flavor's disk is too small for requested image. "
            f"Flavor disk is {disk_bytes} bytes, image is {image_bytes} bytes."
        )
    least_bytes = image.min_disk_gib * _GIB
    if least_bytes > disk_bytes:
        raise BadRequest(
            "Flavor's disk is smaller than the minimum size specified in image metadata. "
            f"Flavor disk is {disk_bytes} bytes, minimum size is {least_bytes} bytes."
        )


def _require_architecture(image: Image, wanted: str | None) -> None:
    named = architecture_of(image.properties)
    if named is not None and wanted is not None and named != wanted:
        raise BadRequest(
            f"Image {image.id} is unacceptable: it is for architecture {named}, "
            f"the server is of {wanted}."
        )
