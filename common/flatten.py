# SPDX-License-Identifier: Apache-2.0
"""Makes one whole image of an increment and the images that it lies on.

An increment in Glance holds only what changed; its parent stands in its
properties. `fetch_chain` brings the whole chain to a directory, every byte
checked, tied together so that any qemu tool can read it; `flatten` puts the
whole back into Glance as an image of its own. Used by `stillframe-manage image
flatten` and wherever an image is restored from. Needs qemu-img.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

from common import qemu_img
from common.errors import JobFailed, VerifyFailed
from common.glance import Image, ImageNotFound, ImageService

LOG = logging.getLogger(__name__)

PARENT_PROPERTY = "stillframe_parent"
#: Properties that only an increment has.
_OF_INCREMENTS = (PARENT_PROPERTY, "stillframe_chain_length")
#: More than any configuration allows; a longer one goes in a circle.
_MAX_CHAIN = 1000
_CHUNK_BYTES = 1 << 20


class BrokenChain(JobFailed):
    """An image that an increment needs is missing, not active or not what it was."""

    code = "broken_chain"


def chain_of(images: ImageService, image_id: str) -> list[Image]:
    """Return the records of an image and all it lies on, the topmost first.

    Raises BrokenChain, ImageNotFound (for the image itself), ImageServiceUnavailable.
    """
    chain = [images.show(image_id)]
    while parent := chain[-1].properties.get(PARENT_PROPERTY):
        try:
            chain.append(images.show(parent))
        except ImageNotFound as error:
            raise BrokenChain(
                f"image {chain[-1].id} needs image {parent}, which was deleted"
            ) from error
        if len(chain) > _MAX_CHAIN:
            raise BrokenChain(f"the images below {image_id} go in a circle")
    for image in chain:
        if image.status != "active":
            raise BrokenChain(f"image {image.id} is {image.status}, not active")
        if len(chain) > 1 and image.disk_format != "qcow2":
            raise BrokenChain(f"image {image.id} is {image.disk_format}; a chain is of qcow2")
    return chain


def fetch_chain(images: ImageService, image_id: str, directory: Path) -> tuple[Path, Image]:
    """Fetch an image and all it lies on into `directory`; return the topmost file and its record.

    The directory needs room for all of them. Raises what `chain_of` does,
    VerifyFailed (the bytes are not those that were uploaded) and QemuImgError.
    """
    chain = chain_of(images, image_id)
    below: Path | None = None
    for image in reversed(chain):
        path = directory / image.id
        LOG.info("Fetching image %s (%d bytes)", image.id, image.size_bytes or 0)
        _fetch(images, image, path)
        if below is not None:
            qemu_img.set_backing(path, backing_file=below, backing_format="qcow2")
        below = path
    return directory / image_id, chain[0]


def flatten(images: ImageService, image_id: str, directory: Path) -> str:
    """Make a whole image of an increment; return the new image's id.

    The new one has the increment's name, owner and properties, and names it in
    `stillframe_flattened_from`; the chain is left as it is. Files in
    `directory` are removed by the caller. Raises BrokenChain if the image is
    no increment, and what `fetch_chain` does.
    """
    if PARENT_PROPERTY not in images.show(image_id).properties:
        raise BrokenChain(f"image {image_id} is no increment: there is nothing to flatten")
    top, _ = fetch_chain(images, image_id, directory)
    whole = directory / "whole"
    qemu_img.convert(top, "qcow2", whole, "qcow2")
    new_id = str(uuid.uuid4())
    images.duplicate_record(
        image_id,
        new_id,
        "",
        {"stillframe_flattened_from": image_id},
        without=(*_OF_INCREMENTS, "stillframe_sha512"),
    )
    try:
        images.update(new_id, {"disk_format": "qcow2", "container_format": "bare"})
        body = _FileBody(whole)
        LOG.info("Uploading image %s (%d bytes)", new_id, len(body))
        images.upload(new_id, body)
        _verify(images, new_id, body)
        images.update(new_id, {"stillframe_sha512": body.sha512})
    except BaseException:
        images.delete(new_id)
        raise
    return new_id


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


def _fetch(images: ImageService, image: Image, path: Path) -> None:
    with path.open("wb") as file:
        digest = hashlib.sha512()
        for chunk in images.download(image.id):
            digest.update(chunk)
            file.write(chunk)
    expected = image.properties.get("stillframe_sha512") or image.hash_value
    if expected and image.hash_algorithm == "sha512" and digest.hexdigest() != expected:
        raise VerifyFailed(f"image {image.id} holds other bytes than were uploaded")


def _verify(images: ImageService, image_id: str, body: _FileBody) -> None:
    image = images.show(image_id)
    if image.size_bytes != len(body) or (
        image.hash_algorithm == "sha512" and image.hash_value != body.sha512
    ):
        raise VerifyFailed("the image service holds other bytes than were sent")
