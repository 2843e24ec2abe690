# SPDX-License-Identifier: Apache-2.0
"""Brings an image's bytes from Glance to a file: inspected, hashed, compared with its record.

    reader thread: GET → throttle → inspection │ hash thread │ caller: writes, zeros left out

A download that breaks off begins again at byte 0 of an empty file, a bounded
number of times. Nothing is synced here: a file that becomes a disk is synced by
`build`, and what a crash leaves is fetched anew. Called by `restorer`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from common import context
from common.errors import VerifyFailed
from common.flatten import SHA512_PROPERTY, NoRoom
from common.glance import Image, ImageService, ImageServiceUnavailable
from compute_agent.restore.inspection import Inspection, Verdict
from compute_agent.restore.model import RestoreSettings, Work
from compute_agent.restore.progress import Told
from compute_agent.restore.room import Rooms
from compute_agent.stream.ahead import Ahead, Buffer
from compute_agent.stream.progress import Meter
from compute_agent.stream.throttle import Throttle, Throttles

LOG = logging.getLogger(__name__)

#: What each thread may be ahead of the next.
_AHEAD_BYTES = 8 << 20
#: Zeros are left out in pieces of this size.
_HOLE_BYTES = 64 << 10
_ZEROS = bytes(_HOLE_BYTES)
_BACKOFF_S = (1.0, 3.0, 10.0, 30.0)
#: How much is written between two looks at the space that is left.
_LOOK_BYTES = 64 << 20
_MB = 10**6


class Fetcher:
    """Fetches the images of one job, one after the other."""

    def __init__(
        self,
        images: ImageService,
        throttle: Throttle,
        settings: RestoreSettings,
        rooms: Rooms,
        job: Work,
        told: Told,
        *,
        most_bytes: int,
    ) -> None:
        self._images = images
        self._throttle = Throttles(throttle, job.throttle)
        self._settings = settings
        self._rooms = rooms
        self._job = job
        self._told = told
        self._most_bytes = most_bytes

    def fetch(self, image: Image, path: Path) -> Verdict:
        """Write an image's data to a new file; return what it is.

        Raises VerifyFailed (size or hash are not the record's), UnsafeImage,
        ImageTooLarge, NoRoom, ImageNotFound, ImageServiceUnavailable after the
        retries, and the job's own reason.
        """
        LOG.info("Fetching image %s (%d bytes)", image.id, image.size_bytes or 0)
        began = time.monotonic()
        verdict = self._patiently(image, path)
        self._told.is_through(image)
        took_s = max(time.monotonic() - began, 1e-6)
        rate = (image.size_bytes or 0) / took_s / _MB
        LOG.info("Fetched image %s in %.1f s, %.0f MB/s", image.id, took_s, rate)
        return verdict

    def _patiently(self, image: Image, path: Path) -> Verdict:
        retries = self._settings.retries
        for attempt in range(retries + 1):
            try:
                return self._once(image, path)
            except ImageServiceUnavailable as error:
                if attempt == retries:
                    raise
                wait_s = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
                LOG.warning(
                    "Download of image %s broke off (%s); attempt %d of %d, from byte 0, in %.0f s",
                    image.id,
                    error,
                    attempt + 2,
                    retries + 1,
                    wait_s,
                )
                self._job.stopped.wait(wait_s)
                self._job.raise_if_stopped()
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _once(self, image: Image, path: Path) -> Verdict:
        one = _Pass(self._images, image, self._throttle, self._job, self._most_bytes)
        try:
            with path.open("wb") as file:
                self._write(one.buffers(), image, file)
        except OSError as error:
            LOG.error("Image %s cannot be written to %s: %s", image.id, path, error)
            raise NoRoom(
                f"image {image.id} cannot be written on the host ({error.strerror})"
            ) from error
        finally:
            one.end()
        return one.verdict()

    def _write(self, buffers: Iterator[Buffer], image: Image, file: BinaryIO) -> None:
        meter = Meter(image.size_bytes or 0, self._told.tell)
        leave_holes = image.disk_format == "raw"
        written = looked_at = 0
        for buffer in buffers:
            if leave_holes:
                _write_sparse(file, buffer)
            else:
                file.write(buffer)
            written += len(buffer)
            meter.add(len(buffer))
            if written - looked_at >= _LOOK_BYTES:
                looked_at = written
                self._rooms.require(Path(file.name).parent, 0, image)
        file.truncate(written)


class _Pass:
    """One GET and the two threads that it takes."""

    def __init__(
        self,
        images: ImageService,
        image: Image,
        throttle: Throttles,
        job: Work,
        most_bytes: int,
    ) -> None:
        self._images = images
        self._image = image
        self._job = job
        self._lease = throttle.lease(job.stopped)
        self._inspection = Inspection(image, most_bytes=most_bytes)
        self._hashes = _hashes(image)
        self._context = context.current()
        self._size_bytes = 0
        self._reader = self._ahead(self._received(), "restore-read")
        self._hasher = self._ahead(self._hashed(), "restore-hash")

    def buffers(self) -> Iterator[Buffer]:
        """Return what was received, hashed already."""
        return iter(self._hasher)

    def end(self) -> None:
        """Let both threads go.

        One that waits for Glance ends with its next byte or by its timeout: it
        only reads, and a stopped job must not wait for it.
        """
        self._reader.abandon()
        self._hasher.end()

    def verdict(self) -> Verdict:
        """Compare with the record, then judge the content."""
        image = self._image
        if self._size_bytes != image.size_bytes:
            raise _differs(image, "size")
        for name, (digest, told) in self._hashes.items():
            if digest.hexdigest() != told:
                raise _differs(image, name)
        return self._inspection.verdict()

    def _ahead(self, produce: Generator[Buffer, None, None], name: str) -> Ahead:
        check = self._job.raise_if_stopped
        return Ahead(produce, limit_bytes=_AHEAD_BYTES, check=check, name=name)

    def _received(self) -> Generator[Buffer, None, None]:
        with context.bound(self._context) if self._context else contextlib.nullcontext():
            for chunk in self._images.download(self._image.id):
                self._size_bytes += len(chunk)
                if self._size_bytes > (self._image.size_bytes or 0):
                    raise _differs(self._image, "size")
                if not self._lease.take(len(chunk)):
                    self._job.raise_if_stopped()
                self._inspection.look_at(chunk)
                yield chunk

    def _hashed(self) -> Generator[Buffer, None, None]:
        for buffer in self._reader:
            for digest, _ in self._hashes.values():
                digest.update(buffer)
            yield buffer


def _hashes(image: Image) -> dict[str, tuple[hashlib._Hash, str]]:
    """Return what to compute, and what must come out: Glance's own, and ours."""
    told: dict[str, tuple[hashlib._Hash, str]] = {}
    algorithm = image.hash_algorithm or ""
    if algorithm in hashlib.algorithms_guaranteed and image.hash_value:
        told["os_hash_value"] = (hashlib.new(algorithm), image.hash_value)
    else:
        LOG.warning(
            "Image %s: Glance hashed it with %s: only its size%s can be compared",
            image.id,
            algorithm or "nothing",
            " and our own hash" if SHA512_PROPERTY in image.properties else "",
        )
    ours = image.properties.get(SHA512_PROPERTY)
    if ours is not None and (algorithm, image.hash_value) != ("sha512", ours):
        told[SHA512_PROPERTY] = (hashlib.sha512(), ours)
    return told


def _differs(image: Image, what: str) -> VerifyFailed:
    return VerifyFailed(
        f"image {image.id} holds other bytes than its record says ({what} differs); do not use it"
    )


def _write_sparse(file: BinaryIO, buffer: Buffer) -> None:
    """Write what is not zeros; where the rest would be, leave a hole."""
    data = bytes(buffer)  # no copy: it is bytes already
    for at in range(0, len(data), _HOLE_BYTES):
        piece = data[at : at + _HOLE_BYTES]
        if piece == _ZEROS[: len(piece)]:
            file.seek(len(piece), os.SEEK_CUR)
        else:
            file.write(piece)
