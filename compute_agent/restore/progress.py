# SPDX-License-Identifier: Apache-2.0
"""Tells how far the images of one job are: to the job each time, to the log now and then."""

from __future__ import annotations

import logging
import time

from common.glance import Image
from common.states import TaskState
from compute_agent.restore.model import Work
from compute_agent.stream.progress import Progress

LOG = logging.getLogger(__name__)

_MB = 10**6


class Told:
    """Several images are told as one whole; one that begins again is told from its start."""

    def __init__(
        self,
        job: Work,
        task_state: TaskState | None,
        *,
        bytes_total: int,
        log_interval_s: float,
    ) -> None:
        self._job = job
        self._task_state = task_state
        self._total = bytes_total
        self._log_interval_s = log_interval_s
        self._logged_at = time.monotonic()
        self._through = 0

    def is_through(self, image: Image) -> None:
        """One image is fetched; what follows is counted on top of it."""
        self._through += image.size_bytes or 0

    def tell(self, progress: Progress) -> None:
        """Take the progress of the image at work."""
        done = self._through + progress.bytes_done
        rate = progress.rate_bytes_s
        eta_s = (self._total - done) / rate if rate else None
        self._job.tell(
            self._task_state,
            bytes_done=done,
            bytes_total=self._total,
            rate_bytes_s=rate,
            eta_s=eta_s,
        )
        if time.monotonic() - self._logged_at >= self._log_interval_s:
            self._logged_at = time.monotonic()
            LOG.info(
                "Fetching: %d%%, %d of %d bytes, %.0f MB/s, %.0f s left",
                done * 100 // self._total if self._total else 100,
                done,
                self._total,
                rate / _MB,
                eta_s or 0.0,
            )
