# SPDX-License-Identifier: Apache-2.0
"""How far a pass is, how fast, how long it will take; made by `pump`, told by the job."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable

#: How often progress is told.
INTERVAL_S = 0.5
#: The rate is that of the last so many seconds, so that it follows what happens now.
_WINDOW_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a pass stands; a pass that starts again starts again at 0."""

    bytes_done: int
    bytes_total: int
    rate_bytes_s: float
    #: Seconds left at this rate; None while nothing moves.
    eta_s: float | None

    @property
    def percent(self) -> int:
        """Share of the whole, 0 to 100, rounded down."""
        return self.bytes_done * 100 // self.bytes_total if self.bytes_total else 100


OnProgress = Callable[[Progress], None]


def ignore(_progress: Progress) -> None:
    """Tell nobody."""


class Meter:
    """Counts one pass's bytes and tells `on_progress` now and then, and at the end."""

    def __init__(
        self,
        bytes_total: int,
        on_progress: OnProgress,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = bytes_total
        self._on_progress = on_progress
        self._interval_s = interval_s
        self._clock = clock
        self._done = 0
        self._told_at = clock()
        #: (time, bytes done) of what was told in the window.
        self._samples = collections.deque([(self._told_at, 0)])

    def add(self, count_bytes: int) -> None:
        """Count bytes that were handed over."""
        self._done += count_bytes
        now = self._clock()
        if now - self._told_at >= self._interval_s or self._done == self._total:
            self._told_at = now
            self._on_progress(self._progress(now))

    def _progress(self, now: float) -> Progress:
        self._samples.append((now, self._done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()
        since, done_then = self._samples[0]
        rate = (self._done - done_then) / max(now - since, 1e-6)
        return Progress(
            bytes_done=self._done,
            bytes_total=self._total,
            rate_bytes_s=rate,
            eta_s=(self._total - self._done) / rate if rate else None,
        )
