# SPDX-License-Identifier: Apache-2.0
"""qemu-img as a bounded process that is never left to guess a format.

Called by the agent's captures and by `flatten`. Each call has a timeout and limits on memory
and processor time: an image may be made by a guest, and qemu-img parses it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import threading
from collections.abc import Collection, Sequence
from typing import Any

from oslo_concurrency import processutils

from common.errors import JobFailed

LOG = logging.getLogger(__name__)

_TIMEOUT_S = 60
_CHECK_TIMEOUT_S = 600
#: What describing an image may take; Nova's own limits for the same call.
_DESCRIBE_LIMITS = processutils.ProcessLimits(address_space=1 << 30, cpu_time=30)
#: A check keeps every reference count in memory: 8 GiB are enough for 100 TiB of image.
_CHECK_LIMITS = processutils.ProcessLimits(address_space=8 << 30, cpu_time=600)
#: A merge writes as much as a guest wrote during a snapshot.
_COMMIT_TIMEOUT_S = 3600
_COMMIT_LIMITS = processutils.ProcessLimits(address_space=8 << 30, cpu_time=3600)
#: A limit that a rounding reaches would end a sound image; this much fills no disk.
_CONVERT_SLACK_BYTES = 16 << 20

#: glibc's malloc reserves 64 to 128 MiB of address space for each thread, and qemu-img begins
#: more threads the slower the disk is: on a busy host a sound image broke the limit. In one
#: arena ten threads took 124 MB rather than 779.
_ENVIRONMENT = {"LC_ALL": "C", "MALLOC_ARENA_MAX": "1"}

#: How soon a process is killed after it was told to stop.
_LOOK_S = 0.1

#: Exit status of `qemu-img check`: errors found; leaks found (harmless, space wasted).
_CHECK_CORRUPT, _CHECK_LEAKED = 2, 3

Path = str | os.PathLike[str]


class QemuImgError(JobFailed):
    """qemu-img failed or took too long; the log has its words."""

    code = "disk_image_error"


class UnrecordedFormat(QemuImgError):
    """An image does not record its backing file's format, and guessing it would be unsafe."""

    code = "disk_format_unrecorded"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What an image file says of itself, sizes in bytes; `backing_file` is a full path."""

    path: str
    format: str
    virtual_bytes: int
    actual_bytes: int
    backing_file: str | None = None
    backing_format: str | None = None


def info(path: Path, image_format: str) -> ImageInfo:
    """Describe one image, also one that a running guest has open. Raises QemuImgError."""
    # -U: without the image lock, for a running guest holds it.
    arguments = ["info", "--output=json", "-U", "-f", image_format, os.fspath(path)]
    return _image_info(json.loads(run(arguments, doing="reading an image's description")))


def backing_chain(path: Path, image_format: str) -> list[ImageInfo]:
    """Describe the image and each one below it, the topmost first.

    Raises QemuImgError, and UnrecordedFormat if a link does not name its
    format: QEMU would have to guess it from content that a guest may have
    written.
    """
    # Looked at one by one, for qemu-img opens a whole chain before it tells
    # that a link has no format, and it opens such a link by guessing.
    chain = [info(path, image_format)]
    while chain[-1].backing_file is not None:
        below, recorded = chain[-1].backing_file, chain[-1].backing_format
        if recorded is None:
            LOG.error("%s does not record the format of its backing file", chain[-1].path)
            raise UnrecordedFormat(
                "the disk's image does not record its backing file's format; the operator can "
                "record it with 'qemu-img rebase -u -F'"
            )
        if below in {image.path for image in chain}:
            LOG.error("%s is its own backing file", below)
            raise QemuImgError("the disk's chain of backing files is circular")
        chain.append(info(below, recorded))
    return chain


def create_scratch(path: Path, size_bytes: int) -> None:
    """Make an empty qcow2 of the virtual size `size_bytes`. Raises QemuImgError."""
    run(
        ["create", "-q", "-f", "qcow2", os.fspath(path), str(size_bytes)],
        doing="making the scratch file",
    )


def create_overlay(path: Path, *, backing_file: Path, backing_format: str, size_bytes: int) -> None:
    """Make an empty qcow2 that shows `backing_file` until it is written to.

    The backing file is named by its full path and is not opened (`-u`), so a
    guest may be using it. Raises QemuImgError.
    """
    backing = os.path.abspath(os.fspath(backing_file))
    run(
        [
            *("create", "-q", "-f", "qcow2", "-u", "-F", backing_format, "-b", backing),
            *(os.fspath(path), str(size_bytes)),
        ],
        doing="making an overlay",
    )


def grow(path: Path, image_format: str, size_bytes: int) -> None:
    """Make an image's virtual size larger; what is added reads as zeros. Raises QemuImgError."""
    run(
        ["resize", "-q", "-f", image_format, os.fspath(path), str(size_bytes)],
        doing="growing a disk",
    )


def set_backing(path: Path, *, backing_file: Path, backing_format: str) -> None:
    """Write into an image what it lies on, and nothing else. Raises QemuImgError."""
    backing = os.path.abspath(os.fspath(backing_file))
    run(
        ["rebase", "-q", "-u", "-f", "qcow2", "-F", backing_format, "-b", backing, os.fspath(path)],
        doing="tying an image to the one below it",
    )


def measure(path: Path, image_format: str, target_format: str) -> int:
    """Return how many bytes `convert` writes at the most. Raises QemuImgError."""
    output = run(
        ["measure", "--output=json", "-f", image_format, "-O", target_format, os.fspath(path)],
        doing="measuring an image",
        timeout_s=_CHECK_TIMEOUT_S,
        limits=_CHECK_LIMITS,
    )
    return int(json.loads(output)["required"])


def convert(
    source: Path, source_format: str, target: Path, target_format: str, *, most_bytes: int
) -> None:
    """Write an image and all it lies on as one whole of no more than `most_bytes`.

    Raises QemuImgError.
    """
    run(
        [
            *("convert", "-q", "-f", source_format, "-O", target_format),
            *(os.fspath(source), os.fspath(target)),
        ],
        doing="making one image of several",
        timeout_s=_COMMIT_TIMEOUT_S,
        limits=processutils.ProcessLimits(
            address_space=_COMMIT_LIMITS.address_space,
            cpu_time=_COMMIT_LIMITS.cpu_time,
            file_size=most_bytes + _CONVERT_SLACK_BYTES,
        ),
    )


def commit(overlay: Path, *, base: Path) -> None:
    """Write what a qcow2 overlay holds into the image right below it, which is named.

    Nobody may have either open. Raises QemuImgError; then nothing is lost, and
    it may be repeated.
    """
    run(
        ["commit", "-q", "-f", "qcow2", "-d", "-b", os.fspath(base), os.fspath(overlay)],
        doing="merging an overlay",
        timeout_s=_COMMIT_TIMEOUT_S,
        limits=_COMMIT_LIMITS,
    )


def check(path: Path, image_format: str, *, timeout_s: int = _CHECK_TIMEOUT_S) -> None:
    """Check an image's own tables; leaked clusters only earn a WARNING. Raises QemuImgError."""
    try:
        run(
            ["check", "-q", "-f", image_format, os.fspath(path)],
            doing="checking an image",
            timeout_s=timeout_s,
            limits=_CHECK_LIMITS,
        )
    except QemuImgError as error:
        cause = error.__cause__
        status = getattr(cause, "exit_code", None)
        if status == _CHECK_LEAKED:
            LOG.warning("%s has leaked clusters (wasted space, no error)", path)
            return
        if status == _CHECK_CORRUPT:
            raise QemuImgError("the image is corrupt") from cause
        raise


def run(
    arguments: Sequence[str],
    *,
    doing: str,
    timeout_s: int = _TIMEOUT_S,
    limits: processutils.ProcessLimits = _DESCRIBE_LIMITS,
    exit_codes: Collection[int] = (0,),
    stopped: threading.Event | None = None,
) -> str:
    """Run qemu-img and return its output; `doing` completes the error's sentence.

    It is killed when its time is up, and soon after `stopped` is set. Raises
    QemuImgError, also if it exits with none of `exit_codes`; qemu-img's own words,
    which name paths, go to the log only.
    """
    command = ["qemu-img", *arguments]
    watch = _Watch(stopped or threading.Event())
    try:
        output, _ = processutils.execute(
            *command,
            timeout=timeout_s,
            prlimit=limits,
            env_variables={**os.environ, **_ENVIRONMENT},
            check_exit_code=list(exit_codes),
            on_execute=watch.begin,
            on_completion=watch.end,
        )
    except processutils.ProcessExecutionError as error:
        LOG.error("%s: %s", " ".join(command), (error.stderr or "").strip())
        raise QemuImgError(f"qemu-img failed while {doing}") from error
    except (subprocess.TimeoutExpired, OSError) as error:
        LOG.error("%s: %s", " ".join(command), error)
        raise QemuImgError(f"qemu-img could not be used while {doing}") from error
    return str(output)


class _Watch:
    """Sees to it that a process ends: processutils leaves one running whose time is up."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._ended = threading.Event()

    def begin(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process that has just begun."""
        threading.Thread(
            target=self._kill_if_stopped, args=[process], name="qemu-img-watch", daemon=True
        ).start()

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process that nobody waits for any more; one that has ended is fine."""
        self._ended.set()
        if process.returncode is None:
            process.kill()
            process.wait()

    def _kill_if_stopped(self, process: subprocess.Popen[bytes]) -> None:
        while not self._ended.wait(_LOOK_S):
            if self._stopped.is_set():
                process.kill()
                return


def _image_info(described: dict[str, Any]) -> ImageInfo:
    return ImageInfo(
        path=described["filename"],
        format=described["format"],
        virtual_bytes=described["virtual-size"],
        actual_bytes=described["actual-size"],
        backing_file=described.get("full-backing-filename") or described.get("backing-filename"),
        backing_format=described.get("backing-filename-format"),
    )
