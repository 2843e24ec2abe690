# SPDX-License-Identifier: Apache-2.0
"""Whether an image's content is what its record claims, and harmless: looked at as it passes.

oslo.utils' inspectors see every byte while `fetch` receives it; nothing is read
twice, and no qemu tool sees a file before it has passed. Nova's rules: what is
found must be what Glance's record says (a partition table counts as raw), and no
image may name a file of this host.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import IO, cast

from oslo_utils.imageutils import format_inspector

from common.flatten import UnsafeImage
from common.glance import Image
from compute_agent.restore import headers
from compute_agent.restore.errors import ImageTooLarge
from compute_agent.restore.headers import Refused

LOG = logging.getLogger(__name__)

#: What the inspectors may find in an image of Glance's `disk_format`.
_MAY_BE = {"raw": {"raw", "gpt"}}
#: qemu's names of Glance's formats, where they differ.
_QEMU_NAMES = {"vhd": "vpc"}
#: The inspectors' checks, as they are told to a tenant.
_WORDS = {
    "backing_file": "it names a backing file",
    "data_file": "it names an external data file",
    "unknown_features": "it has features that are not known",
    "descriptor": "its descriptor is of another type or names other files",
    "footer": "its footer contradicts its header",
    "banned": "its format is not allowed",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an image that passed turned out to be."""

    #: As qemu knows it.
    format: str
    virtual_bytes: int
    #: By its header, a guest may write to it as it is.
    is_disk: bool


class Inspection:
    """One pass over one image. `look_at` each chunk in order, then ask for the `verdict`."""

    def __init__(self, image: Image, *, most_bytes: int) -> None:
        self._image = image
        self._claims = image.disk_format or ""
        self._most_bytes = most_bytes
        self._passing = _Passing()
        passing = cast(IO[bytes], self._passing)
        expected = None if self._claims in _MAY_BE else self._claims
        self._wrapper = format_inspector.InspectWrapper(passing, expected_format=expected)
        self._seen_bytes = 0

    def look_at(self, chunk: bytes) -> None:
        """Let the inspectors see a chunk; raise UnsafeImage as soon as it cannot be good."""
        self._seen_bytes += len(chunk)
        self._passing.chunk = chunk
        try:
            self._wrapper.read(len(chunk))
        except Exception as error:  # the inspectors raise whatever parsing raises
            LOG.error("Image %s is refused: %s", self._image.id, error)
            raise self._unsafe(f"its content is not the {self._claims} that it claims") from error

    def verdict(self) -> Verdict:
        """Judge the whole. Raises UnsafeImage, ImageTooLarge."""
        self._wrapper.close()
        try:
            found = self._judged()
        except Refused as error:
            LOG.error("Image %s is refused: %s", self._image.id, error)
            raise self._unsafe(str(error)) from error
        except Exception as error:  # the inspectors raise whatever parsing raises
            LOG.error("Image %s is refused: %r", self._image.id, error)
            raise self._unsafe(f"it cannot be read as {self._claims}") from error
        if found.virtual_bytes > self._most_bytes:
            raise ImageTooLarge(
                f"image {self._image.id} holds a disk of {found.virtual_bytes} bytes, and there "
                f"is room for {self._most_bytes}"
            )
        return found

    def _judged(self) -> Verdict:
        try:
            found = self._wrapper.format
        except format_inspector.ImageFormatError as error:
            raise Refused("it is of several formats at once") from error
        if found is None:
            raise Refused("its format cannot be told")
        name = str(found)
        if name not in _MAY_BE.get(self._claims, {self._claims}):
            raise Refused(f"its content is {name}, not the {self._claims} that it claims")
        if self._claims == "raw":
            # Of no concern to this host is what a guest writes into its boot sector.
            return Verdict(format="raw", virtual_bytes=self._seen_bytes, is_disk=True)
        _require_safe(found)
        is_disk = self._look_deeper(name, found)
        size = int(found.virtual_size)
        if size <= 0:
            raise Refused("it has no size")
        return Verdict(format=_QEMU_NAMES.get(name, name), virtual_bytes=size, is_disk=is_disk)

    def _look_deeper(self, name: str, found: format_inspector.FileInspector) -> bool:
        if name == "qcow2":
            header = headers.qcow2(bytes(found.region("header").data), self._seen_bytes)
            return header.is_disk
        if name == "vmdk":
            headers.vmdk(found)
        return False

    def _unsafe(self, why: str) -> UnsafeImage:
        return UnsafeImage(
            f"image {self._image.id} is refused: {why}; upload one that stands alone and is of "
            "the format that its record says"
        )


class _Passing:
    """A file that gives the chunk at hand, whatever it is asked for."""

    chunk = b""

    def read(self, _size: int) -> bytes:
        """Return the chunk."""
        return self.chunk


def _require_safe(found: format_inspector.FileInspector) -> None:
    try:
        found.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        failed = [_WORDS.get(name, f"its {name} is not sound") for name in error.failures]
        raise Refused(", ".join(failed)) from error
    except format_inspector.ImageFormatError as error:
        raise Refused("it is not whole") from error
