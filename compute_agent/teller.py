# SPDX-License-Identifier: Apache-2.0
"""Passes a stream's progress on: to the reports each time, to the log now and then.

A job may send several images, one after the other; it is told as one whole.
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
        self._total = 0
        self._through = 0

    def expect(self, bytes_total: int) -> None:
        """Take how much there is in all images together."""
        self._total = bytes_total
        self._began = self._logged = time.monotonic()

    def went_through(self, size_bytes: int) -> None:
        """One image is through; what follows is counted on top of it."""
        self._through += size_bytes

    def tell(self, progress: Progress) -> None:
        """Take the progress of the image at work."""
        done = min(self._through + progress.bytes_done, self._total)
        rate = progress.rate_bytes_s
        eta_s = (self._total - done) / rate if rate else None
        self._job.tell(
            TaskState.IMAGE_UPLOADING,
            bytes_done=done,
            bytes_total=self._total,
            rate_bytes_s=rate,
            eta_s=eta_s,
        )
        if time.monotonic() - self._logged >= self._log_interval_s:
            self._logged = time.monotonic()
            LOG.info(
                "Uploading: %d%%, %d of %d bytes, %.0f MB/s, %.0f s left",
                done * 100 // self._total if self._total else 100,
                done,
                self._total,
                rate / MB,
                eta_s or 0.0,
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
