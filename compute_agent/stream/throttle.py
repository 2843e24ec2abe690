# SPDX-License-Identifier: Apache-2.0
"""The bound on what all jobs of a host read together, in bytes a second.

A token bucket. Each job takes through a lease of its own, in portions of equal
size that are served in the order of asking: so jobs share byte for byte,
whether they read large pieces or small ones. Called by `pump`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: One turn of a job. Reads are of this size where the disk is not shattered.
_PORTION_BYTES = 1 << 20
#: What an idle bucket holds, in seconds of its rate.
_BURST_S = 0.1
#: A changed rate takes effect for those who wait already within this time.
_LOOK_S = 0.1
#: Less than this is no wait, only the rounding of sums.
_INSTANT_S = 1e-6

Wait = Callable[[threading.Event, float], bool]


class Throttle:
    """Shared by all jobs of a host; thread-safe. A rate of 0 is no limit.

    `clock` returns seconds; `wait(event, seconds)` waits for the event that
    long at the most and tells whether it is set.
    """

    def __init__(
        self,
        rate_bytes_s: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = threading.Event.wait,
    ) -> None:
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._rate_bytes_s = rate_bytes_s
        self._looked_at = clock()
        #: Bytes that were ever asked for, and that were ever allowed.
        self._asked = 0
        self._allowed = 0.0

    @property
    def rate_bytes_s(self) -> int:
        """The rate in force."""
        return self._rate_bytes_s

    def set_rate(self, rate_bytes_s: int) -> None:
        """Change the rate, also for those who wait."""
        with self._lock:
            self._refill()
            self._rate_bytes_s = rate_bytes_s

    def lease(self, stopped: threading.Event) -> Lease:
        """Return one job's share; its waits end at once when `stopped` is set."""
        return Lease(self, stopped)

    def _take(self, count_bytes: int, stopped: threading.Event) -> bool:
        """Wait for one portion; False if `stopped` was set meanwhile."""
        with self._lock:
            self._refill()
            self._asked += count_bytes
            mine = self._asked
        while (left_s := self._seconds_until(mine)) > _INSTANT_S:
            if self._wait(stopped, min(left_s, _LOOK_S)):
                with self._lock:
                    self._allowed += count_bytes  # those behind move up
                return False
        return True

    def _seconds_until(self, mark: int) -> float:
        with self._lock:
            self._refill()
            if not self._rate_bytes_s:
                return 0.0
            return (mark - self._allowed) / self._rate_bytes_s

    def _refill(self) -> None:
        now = self._clock()
        full = self._asked + self._rate_bytes_s * _BURST_S
        if self._rate_bytes_s:
            gained = (now - self._looked_at) * self._rate_bytes_s
            self._allowed = min(self._allowed + gained, full)
        else:
            self._allowed = full
        self._looked_at = now


class Throttles:
    """Several bounds at once: the host's and the job's own. The narrowest one rules."""

    def __init__(self, *throttles: Throttle) -> None:
        self._throttles = throttles

    def lease(self, stopped: threading.Event) -> Leases:
        """Return a share of each."""
        return Leases([throttle.lease(stopped) for throttle in self._throttles])


class Leases:
    """Shares of several throttles; for one thread."""

    def __init__(self, leases: list[Lease]) -> None:
        self._leases = leases

    def take(self, count_bytes: int) -> bool:
        """Wait until `count_bytes` more may pass everywhere; False when the job was stopped."""
        return all(lease.take(count_bytes) for lease in self._leases)


class Lease:
    """One job's share of a Throttle; for one thread."""

    def __init__(self, throttle: Throttle, stopped: threading.Event) -> None:
        self._throttle = throttle
        self._stopped = stopped
        self._owed_bytes = 0

    def take(self, count_bytes: int) -> bool:
        """Wait until `count_bytes` more may pass; False at once when the job was stopped."""
        self._owed_bytes += count_bytes
        while self._owed_bytes >= _PORTION_BYTES:
            self._owed_bytes -= _PORTION_BYTES
            if not self._throttle._take(_PORTION_BYTES, self._stopped):
                return False
        return not self._stopped.is_set()
