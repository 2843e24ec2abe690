# SPDX-License-Identifier: Apache-2.0
"""Passes a stream's progress on: to the reports each time, to the log now and then.

A job may send several images, one after the other, and read their disks once
before (compression does); it is told as one whole, each pass counted.
"""

from __future__ import annotations

import logging
import time

from common.states import TaskState
from compute_agent.jobs import MB, Job
from compute_agent.stream.progress import Progress

LOG = logging.getLogger(__name__)


class Teller:
    """Told by the pump how far an image is; tells how far the job is."""

    def __init__(self, job: Job, log_interval_s: float) -> None:
        self._job = job
        self._log_interval_s = log_interval_s
        self._began = self._logged = time.monotonic()
        self._first_pass = 0
        self._total = 0
        self._through = 0

    def tell_first_pass(self, progress: Progress) -> None:
        """Take how far the reading before the upload is; what is read is sent at the most."""
        read, to_read = progress.bytes_done, progress.bytes_total
        before = self._first_pass
        self._tell("First pass", before + read, 2 * (before + to_read), progress.rate_bytes_s)
        if read == to_read:
            self._first_pass += to_read

    def expect(self, bytes_total: int) -> None:
        """Take how much there is in all images together."""
        self._total = bytes_total
        self._began = self._logged = time.monotonic()

    def went_through(self, size_bytes: int) -> None:
        """One image is through; what follows is counted on top of it."""
        self._through += size_bytes

    def goes_again(self, size_bytes: int) -> None:
        """One image that was through is sent once more."""
        self._through -= size_bytes

    def tell(self, progress: Progress) -> None:
        """Take the progress of the image at work."""
        done = min(self._through + progress.bytes_done, self._total)
        self._tell(
            "Uploading",
            self._first_pass + done,
            self._first_pass + self._total,
            progress.rate_bytes_s,
        )

    def finish(self) -> None:
        """Say what the whole was like."""
        took_s = max(time.monotonic() - self._began, 1e-6)
        LOG.info(
            "Uploaded %d bytes in %.1f s, %.0f MB/s",
            self._through,
            took_s,
            self._through / took_s / MB,
        )

    def _tell(self, doing: str, done: int, total: int, rate_bytes_s: float) -> None:
        eta_s = (total - done) / rate_bytes_s if rate_bytes_s else None
        self._job.tell(
            TaskState.IMAGE_UPLOADING,
            bytes_done=done,
            bytes_total=total,
            rate_bytes_s=rate_bytes_s,
            eta_s=eta_s,
        )
        if time.monotonic() - self._logged >= self._log_interval_s:
            self._logged = time.monotonic()
            LOG.info(
                "%s: %d%%, %d of %d bytes, %.0f MB/s, %.0f s left",
                doing,
                done * 100 // total if total else 100,
                done,
                total,
                rate_bytes_s / MB,
                eta_s or 0.0,
            )
