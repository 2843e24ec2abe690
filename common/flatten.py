# SPDX-License-Identifier: Apache-2.0
"""Makes one whole image of an increment and the images that it lies on.

An increment in Glance holds only what changed; its parent stands in its
properties. `fetch_chain` brings the whole chain to a directory, every byte
checked, tied together so that any qemu tool can read it; `flatten` puts the
whole back into Glance as an image of its own. Used by `stillframe-manage image
flatten` and wherever an image is restored from. Needs qemu-img.

Nothing that a tenant can write is trusted, neither properties nor content. A
chain stays within one project; what was fetched is what Glance itself hashed;
and no qemu tool sees a file before `_inspect` has: a qcow2 that names a file of
this host, as its backing or data file, would end with that file's content in
the whole image (OSSA-2024-001, OSSA-2024-002).
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from oslo_utils import uuidutils
from oslo_utils.imageutils import format_inspector

from common import qemu_img
from common.errors import JobFailed, VerifyFailed
from common.glance import Image, ImageNotFound, ImageService

LOG = logging.getLogger(__name__)

PARENT_PROPERTY = "stillframe_parent"
LENGTH_PROPERTY = "stillframe_chain_length"
SHA512_PROPERTY = "stillframe_sha512"
#: Properties that the whole does not take over from the increment.
_NOT_OF_THE_WHOLE = (PARENT_PROPERTY, LENGTH_PROPERTY, SHA512_PROPERTY)
#: Images of one chain, the full one included: qemu-img has them all open at once.
MAX_CHAIN = 200
_FORMAT = "qcow2"
_CHUNK_BYTES = 1 << 20
_MIB = 1 << 20

#: Writes an image's data to a new file, or raises.
Fetch = Callable[[Image, Path], object]


class BrokenChain(JobFailed):
    """An image that an increment needs is missing, not active or does not fit."""

    code = "broken_chain"


class ForeignParent(BrokenChain):
    """An image of the chain belongs to another project than the increment."""

    code = "foreign_parent"


class UnsafeImage(JobFailed):
    """An image's content is not what its record claims, or is more than a disk's content."""

    code = "unsafe_image"


class NoRoom(JobFailed):
    """Where images are fetched to cannot take them."""

    code = "no_room"


def chain_of(images: ImageService, image_id: str) -> list[Image]:
    """Return the records of an image and all it lies on, the topmost first.

    Raises BrokenChain, ForeignParent, ImageNotFound (for the image itself),
    ImageServiceUnavailable.
    """
    chain = [images.show(image_id)]
    _require_usable(chain[0], chain[0])
    while PARENT_PROPERTY in chain[-1].properties:
        if len(chain) >= MAX_CHAIN:
            raise BrokenChain(
                f"more than {MAX_CHAIN} images lie on each other below image {chain[0].id}; "
                "take a full snapshot"
            )
        parent = _parent_of(images, chain[-1])
        if any(parent.id == image.id for image in chain):
            raise BrokenChain(
                f"the images below {chain[0].id} go in a circle at image {chain[-1].id}; "
                f"set its {PARENT_PROPERTY} to the parent that the job which made it tells"
            )
        _require_usable(parent, chain[0])
        chain.append(parent)
    for below, image in enumerate(reversed(chain)):
        _require_whole_below(image, below)
    return chain


def _require_whole_below(image: Image, found: int) -> None:
    """Raise BrokenChain if fewer (or more) images lie below one than when it was made."""
    told = image.properties.get(LENGTH_PROPERTY, str(found))
    if told != str(found):
        raise BrokenChain(
            f"image {image.id} was made on {told} images and lies on {found}: somebody changed "
            f"{PARENT_PROPERTY} of it or of one below; the jobs which made them tell the parents"
        )


def fetch_chain(chain: list[Image], directory: Path, fetch: Fetch) -> Path:
    """Fetch the images of a chain into `directory`; return the topmost file, tied to the rest.

    The directory is private (0700) and has room for all of them. `fetch` writes an
    image to the path that it is given, and checks that these are the bytes that
    Glance hashed. Raises UnsafeImage, BrokenChain, QemuImgError, and what `fetch` raises.
    """
    below: Path | None = None
    virtual_bytes = None
    for image in reversed(chain):
        path = directory / image.id
        fetch(image, path)
        size = _inspect(image, path)
        if size != (virtual_bytes or size):
            # An increment is only made of a disk that kept its size.
            raise BrokenChain(
                f"image {image.id} is of another virtual size than the image below it; "
                "take a full snapshot"
            )
        virtual_bytes = size
        if below is not None:
            qemu_img.set_backing(path, backing_file=below, backing_format=_FORMAT)
        below = path
    return directory / chain[0].id


def flatten(images: ImageService, image_id: str, directory: Path) -> str:
    """Make a whole image of an increment; return the new image's id.

    The new one has the increment's name, owner and properties, and names it in
    `stillframe_flattened_from`; the chain is left as it is. Works in a private
    directory below `directory`, which is gone in the end whatever happens.
    Raises BrokenChain if the image is no increment, and what `chain_of` and
    `fetch_chain` do.
    """
    chain = chain_of(images, image_id)
    if len(chain) == 1:
        raise BrokenChain(f"image {image_id} is no increment: there is nothing to flatten")
    with tempfile.TemporaryDirectory(prefix="stillframe-flatten-", dir=directory) as private:
        whole = _make_whole(images, chain, Path(private))
        return _publish(images, chain[0], whole)


class _FileBody:
    """A file as an upload's body, hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sha512 = ""

    def __len__(self) -> int:
        return self._path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        digest = hashlib.sha512()
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
        self.sha512 = digest.hexdigest()


def _parent_of(images: ImageService, image: Image) -> Image:
    parent = image.properties[PARENT_PROPERTY]
    # It becomes a part of a URL and of a path.
    if not uuidutils.is_uuid_like(parent):
        raise BrokenChain(
            f"image {image.id} names no image in its property {PARENT_PROPERTY}; "
            "set it to the parent that the job which made it tells"
        )
    try:
        return images.show(str(uuid.UUID(parent)))
    except ImageNotFound as error:
        raise BrokenChain(
            f"image {image.id} needs image {parent}, which was deleted; take a full snapshot"
        ) from error


def _require_usable(image: Image, top: Image) -> None:
    if image.owner != top.owner:
        raise ForeignParent(
            f"image {image.id} belongs to another project than image {top.id}, which claims to "
            f"lie on it; set {PARENT_PROPERTY} to the parent that the job which made it tells"
        )
    if image.status != "active":
        raise BrokenChain(
            f"image {image.id} is {image.status}, not active; reactivate it or take a full snapshot"
        )
    if image.disk_format != _FORMAT:
        raise BrokenChain(
            f"image {image.id} is {image.disk_format}, but increments and what they lie on are "
            f"{_FORMAT}; take a full snapshot"
        )


def _require_room(directory: Path, needed_bytes: int, image: Image) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes > free_bytes:
        raise NoRoom(
            f"image {image.id} and what it lies on need {needed_bytes // _MIB} MiB more of the "
            f"temporary directory, which has {free_bytes // _MIB} MiB; let TMPDIR name a larger one"
        )


def _fetch(images: ImageService, image: Image, path: Path) -> None:
    LOG.info("Fetching image %s (%d bytes)", image.id, image.size_bytes or 0)
    digest, fetched = hashlib.sha512(), 0
    try:
        with path.open("xb") as file:
            for chunk in images.download(image.id):
                fetched += len(chunk)
                if fetched > (image.size_bytes or 0):
                    break
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        LOG.error("Image %s cannot be written to %s: %s", image.id, path, error)
        raise NoRoom(
            f"image {image.id} cannot be written to the temporary directory "
            f"({error.strerror}); let TMPDIR name a larger one"
        ) from error
    sha512 = digest.hexdigest()
    hashed = image.hash_algorithm == "sha512"
    if not hashed:
        LOG.warning("Image %s: Glance hashes with %s, not sha512", image.id, image.hash_algorithm)
    # What Glance says, which no tenant can set, then what the property says.
    for what, found, told in (
        ("size", fetched, image.size_bytes),
        ("os_hash_value", sha512, image.hash_value if hashed else sha512),
        (SHA512_PROPERTY, sha512, image.properties.get(SHA512_PROPERTY, sha512)),
    ):
        if found != told:
            raise VerifyFailed(
                f"image {image.id} holds other bytes than its record says ({what} differs); "
                "do not use it, take a full snapshot"
            )


def _inspect(image: Image, path: Path) -> int:
    """Return the virtual size in bytes of a plain qcow2. Raises UnsafeImage for all else."""
    try:
        found = format_inspector.detect_file_format(str(path))
        if found is None or found.NAME != _FORMAT:
            raise format_inspector.ImageFormatError(f"found {found}")
        # No backing file, no data file, no feature that is not known to be harmless.
        found.safety_check()
    except (format_inspector.ImageFormatError, format_inspector.SafetyCheckFailed) as error:
        LOG.error("Image %s is refused: %s", image.id, error)
        raise UnsafeImage(
            f"image {image.id} is not a {_FORMAT} that stands alone ({error}); no snapshot of "
            "ours is like that: find out who uploaded it, and delete it"
        ) from error
    return int(found.virtual_size)


def _make_whole(images: ImageService, chain: list[Image], directory: Path) -> Path:
    whole = directory / "whole"
    _require_room(directory, sum(image.size_bytes or 0 for image in chain), chain[0])
    try:
        top = fetch_chain(chain, directory, functools.partial(_fetch, images))
        # A small file can claim to hold any amount of data, and never fill the disk.
        most_bytes = qemu_img.measure(top, _FORMAT, _FORMAT)
        _require_room(directory, most_bytes, chain[0])
        qemu_img.convert(top, _FORMAT, whole, _FORMAT, most_bytes=most_bytes)
    except qemu_img.QemuImgError as error:
        raise BrokenChain(
            f"image {chain[0].id} and what it lies on make no disk ({error}); the log has "
            "qemu-img's own words; take a full snapshot"
        ) from error
    return whole


def _publish(images: ImageService, increment: Image, whole: Path) -> str:
    new_id = str(uuid.uuid4())
    try:
        images.duplicate_record(
            increment.id,
            new_id,
            "",
            {"stillframe_flattened_from": increment.id},
            without=_NOT_OF_THE_WHOLE,
        )
        images.update(new_id, {"disk_format": _FORMAT, "container_format": "bare"})
        body = _FileBody(whole)
        LOG.info("Uploading image %s (%d bytes)", new_id, len(body))
        images.upload(new_id, body)
        _verify(images, new_id, body)
        images.update(new_id, {SHA512_PROPERTY: body.sha512})
    except BaseException:
        images.delete(new_id)
        raise
    return new_id


def _verify(images: ImageService, image_id: str, body: _FileBody) -> None:
    image = images.show(image_id)
    if image.size_bytes != len(body) or (
        image.hash_algorithm == "sha512" and image.hash_value != body.sha512
    ):
        raise VerifyFailed(
            f"the image service holds other bytes in image {image_id} than were sent; try again"
        )
