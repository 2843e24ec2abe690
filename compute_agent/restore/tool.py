# SPDX-License-Identifier: Apache-2.0
"""qemu-img on an image from outside: its second opinion, and its conversion to a disk.

Only sees files that `inspection` has passed; always told the format, always under
limits of memory, time and what it writes, and killed when the job is to end.
Called by `restorer` and `build`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from oslo_concurrency import processutils

from common import qemu_img
from common.flatten import UnsafeImage
from common.qemu_img import QemuImgError
from compute_agent.restore.inspection import Verdict
from compute_agent.restore.model import RestoreSettings, Work

#: A limit that a rounding reaches would end a sound conversion; this much fills no disk.
_SLACK_BYTES = 16 << 20
#: `qemu-img check`: nothing wrong, errors found, clusters leaked.
_CHECKED = (0, 2, 3)
_SECTOR = 512
_NO_PARENT_CID = 0xFFFFFFFF
_VMDK_TYPES = ("monolithicSparse", "streamOptimized")


class Tool:
    """qemu-img, as one job may use it on one image."""

    def __init__(self, image_id: str, settings: RestoreSettings, job: Work) -> None:
        self._image_id = image_id
        self._settings = settings
        self._job = job

    def second_opinion(self, path: Path, verdict: Verdict) -> Verdict:
        """Let qemu-img look at a file that was passed; return what it is by both.

        Raises UnsafeImage if it sees what the inspection did not, cannot read
        the file, or finds a qcow2's tables damaged.
        """
        if verdict.format == "raw":
            return verdict
        found = self._described(path, verdict.format)
        if _leads_elsewhere(found, path) or found.get("encrypted"):
            raise self._unsafe("it is encrypted or needs other files")
        is_disk = verdict.is_disk and self._is_tidy(path)
        # Rounded up: to whole sectors, a VHD's to whole cylinders.
        virtual_bytes = int(found["virtual-size"])
        if verdict.format == "qcow2" and not 0 <= virtual_bytes - verdict.virtual_bytes < _SECTOR:
            raise self._unsafe("its size is not what its header says")
        return Verdict(format=verdict.format, virtual_bytes=virtual_bytes, is_disk=is_disk)

    def measure(self, path: Path, image_format: str) -> int:
        """Return how many bytes a qcow2 of the whole takes at the most. Raises UnsafeImage."""
        output = self._run(
            ["measure", "--output=json", "-f", image_format, "-O", "qcow2", os.fspath(path)],
            doing="measuring an image",
        )
        return int(json.loads(output)["required"])

    def convert(
        self,
        path: Path,
        image_format: str,
        target: Path,
        target_format: str,
        *,
        most_bytes: int,
    ) -> None:
        """Write the image, and all it lies on, as one whole of no more than `most_bytes`.

        Raises UnsafeImage.
        """
        self._run(
            [
                *("convert", "-q", "-f", image_format, "-O", target_format),
                *(os.fspath(path), os.fspath(target)),
            ],
            doing="converting an image",
            most_bytes=most_bytes + _SLACK_BYTES,
        )

    def _described(self, path: Path, image_format: str) -> dict[str, Any]:
        output = self._run(
            ["info", "--output=json", "-f", image_format, os.fspath(path)],
            doing="reading an image's description",
        )
        found: dict[str, Any] = json.loads(output)
        return found

    def _is_tidy(self, path: Path) -> bool:
        """Check a qcow2's tables; tell whether nothing in it is compressed or lost."""
        output = self._run(
            ["check", "--output=json", "-f", "qcow2", os.fspath(path)],
            doing="checking an image",
            exit_codes=_CHECKED,
        )
        found = json.loads(output)
        if found.get("corruptions") or found.get("check-errors"):
            raise self._unsafe("its tables are damaged")
        return not (found.get("compressed-clusters") or found.get("leaks"))

    def _run(
        self,
        arguments: Sequence[str],
        *,
        doing: str,
        most_bytes: int | None = None,
        exit_codes: Collection[int] = (0,),
    ) -> str:
        self._job.raise_if_stopped()
        seconds = self._settings.qemu_img_timeout_s
        limits = processutils.ProcessLimits(
            address_space=self._settings.qemu_img_memory_bytes,
            cpu_time=seconds,
            file_size=most_bytes,
        )
        try:
            return qemu_img.run(
                arguments,
                doing=doing,
                timeout_s=seconds,
                limits=limits,
                exit_codes=exit_codes,
                stopped=self._job.stopped,
            )
        except QemuImgError as error:
            self._job.raise_if_stopped()
            raise self._unsafe(
                "it is damaged, or takes more time or space than it may to be read"
            ) from error

    def _unsafe(self, why: str) -> UnsafeImage:
        return UnsafeImage(f"image {self._image_id} is refused: {why}; upload a sound one")


def _leads_elsewhere(found: dict[str, Any], path: Path) -> bool:
    """Tell whether qemu-img, too, sees no other file than the one at `path`."""
    special = found.get("format-specific", {}).get("data", {})
    extents = special.get("extents", ())
    return bool(
        found.get("backing-filename")
        or found.get("full-backing-filename")
        or special.get("data-file")
        or special.get("parent-cid", _NO_PARENT_CID) != _NO_PARENT_CID
        or special.get("create-type", _VMDK_TYPES[0]) not in _VMDK_TYPES
        or any(extent.get("filename") != os.fspath(path) for extent in extents)
    )
