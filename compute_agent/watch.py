# SPDX-License-Identifier: Apache-2.0
"""Looks after a running job: whatever must end it, or slow it down, is seen within a second.

A thread of the job's own calls each check in turn; one that raises stops the
job with what it raised. Made by `snapshot` for the time in which the frozen
view is open. Backup work must fail before the guest does.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from common import context
from common.errors import CaptureFailed, JobCancelled, StillframeError
from common.glance import ImageNotFound, ImageService
from compute_agent.guest.domain import DiskLatency, Guest
from compute_agent.jobs import Job
from compute_agent.stream.adaptive import AdaptiveRate

LOG = logging.getLogger(__name__)

_INTERVAL_S = 0.4
#: A look at Glance costs both sides ten milliseconds of a processor; a cancel has a second.
IMAGE_INTERVAL_S = 0.8
#: What waits for a Glance that hangs must not keep the guest's disk waiting.
_JOIN_TIMEOUT_S = 0.5
_GONE = frozenset({"deleted", "pending_delete", "killed"})

Check = Callable[[], None]


class Watch:
    """Runs `checks` for a job until left; `with Watch(job, checks): ...`."""

    def __init__(self, job: Job, checks: Iterable[Check], interval_s: float = _INTERVAL_S) -> None:
        self._job = job
        self._checks = tuple(checks)
        self._interval_s = interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(_JOIN_TIMEOUT_S)

    def _run(self) -> None:
        with context.bound(self._job.context):
            while not self._over.wait(self._interval_s):
                for check in self._checks:
                    if not self._holds(check):
                        return

    def _holds(self, check: Check) -> bool:
        try:
            check()
        except (JobCancelled, CaptureFailed) as error:
            LOG.warning("Stopping job %s: %s", self._job.entry.job_id, error.message)
            self._job.stop(error)
            return False
        except (StillframeError, OSError) as error:
            LOG.debug("Not looked this time: %s", error)
        except Exception:
            LOG.exception("Job %s cannot be looked after in one respect", self._job.entry.job_id)
            self._checks = tuple(one for one in self._checks if one is not check)
        return True


def image_is_wanted(images: ImageService, image_ids: Callable[[], Iterable[str]]) -> Check:
    """Raise JobCancelled when one of the images is deleted: whoever does means to cancel."""

    def check() -> None:
        for image_id in list(image_ids()):
            try:
                status = images.look(image_id).status
            except ImageNotFound:
                status = "deleted"
            # Looked up before, it may have been replaced since.
            if status in _GONE and image_id in image_ids():
                raise JobCancelled("the image was deleted while the snapshot ran")

    return check


def space_is_left(
    files: Iterable[Path],
    min_free_bytes: int,
    reserve_bytes: Callable[[], int],
    others_bytes: Callable[[Path], int],
) -> Check:
    """Raise CaptureFailed before the file system of a growing file is full.

    Beyond `min_free_bytes` there must be left what ending the capture will take,
    and what belongs to others in a directory's file system.
    """
    directories = {file.parent for file in files}

    def check() -> None:
        own = min_free_bytes + reserve_bytes()
        for directory in directories:
            free, others = shutil.disk_usage(directory).free, others_bytes(directory)
            if free < own + others:
                LOG.error(
                    "%s has only %d MiB left, %d of them for other captures that are open",
                    *(directory, free >> 20, others >> 20),
                )
                raise CaptureFailed(
                    "the host ran out of space for what the instance overwrote during the "
                    "snapshot; try again later, or when the instance writes less"
                )

    return check


def guest_suffers(guest: Guest, rate: AdaptiveRate) -> Check:
    """Slow the job down while the guest's own I/O takes much longer than it used to."""
    last: list[tuple[DiskLatency, ...]] = []

    def check() -> None:
        now = guest.disk_latency()
        if last:
            rate.observe(
                [
                    (after.operations - before.operations, after.total_ns - before.total_ns)
                    for before, after in zip(last[0], now, strict=True)
                ]
            )
        last[:] = [now]

    return check
