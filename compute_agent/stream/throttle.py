# SPDX-License-Identifier: Apache-2.0
"""The bound on what all jobs of a host read together, in bytes a second.

A pacer rather than a bucket: each grant moves the time at which the next one
is due, so that jobs take turns and share fairly without knowing of each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: How far behind its schedule the pacer may catch up, in seconds.
_BURST_S = 0.1


class Throttle:
    """Shared by all jobs of a host; thread-safe. A rate of 0 is no limit."""

    def __init__(self, rate_bytes_s: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rate_bytes_s = rate_bytes_s
        self._due = clock()

    def set_rate(self, rate_bytes_s: int) -> None:
        """Change the rate for every grant from now on."""
        with self._lock:
            self._rate_bytes_s = rate_bytes_s
            self._due = min(self._due, self._clock())

    def pace(self, count_bytes: int, stopped: threading.Event) -> None:
        """Wait until `count_bytes` more may pass; return at once when `stopped` is set."""
        with self._lock:
            if not self._rate_bytes_s:
                return
            now = self._clock()
            begin = max(self._due, now - _BURST_S)
            self._due = begin + count_bytes / self._rate_bytes_s
            wait_s = begin - now
        if wait_s > 0:
            stopped.wait(wait_s)
