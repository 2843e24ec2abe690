# SPDX-License-Identifier: Apache-2.0
"""A rate that gives way to the guest: down fast when its disks suffer, up slowly when not.

`watch` feeds it what libvirt counts of the guest's own reads and writes; it sets
the job's own throttle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from compute_agent.stream.throttle import Throttle

LOG = logging.getLogger(__name__)

_DOWN = 0.6
_UP = 1.1
#: Never slower: a snapshot that does not end keeps its scratch growing.
_FLOOR_BYTES_S = 10 * 10**6
#: Where a host without a limit begins to be slowed down from.
_CEILING_BYTES_S = 1000 * 10**6
#: A guest that suffered and then finishes nothing may suffer all the more; or it may want
#: nothing of its disks any more, which this many looks tell.
_PATIENT_LOOKS = 25
#: Latencies below are no suffering, whatever they were before.
_UNNOTICED_NS = 2_000_000
_NS_PER_MS = 1e6


class _Way:
    """The guest's reads, or its writes."""

    def __init__(self, bearable_ns: float) -> None:
        self._bearable_ns = bearable_ns
        self._patience = 0

    def suffers(self, operations: int, total_ns: int) -> bool | None:
        """Tell whether those that were finished took too long; None: that cannot be told yet."""
        if operations <= 0 and self._patience:
            self._patience -= 1
            return None
        suffers = operations > 0 and total_ns / operations > self._bearable_ns
        self._patience = _PATIENT_LOOKS if suffers else 0
        return suffers


class AdaptiveRate:
    """Sets `throttle` between a floor and `ceiling()` (0: 1 GB/s) by the guest's latency.

    `usual_ns` is what a read, and a write, of the guest takes when nothing disturbs
    it; more than `factor` times that is suffering.
    """

    def __init__(
        self,
        throttle: Throttle,
        *,
        ceiling: Callable[[], int],
        usual_ns: Iterable[float],
        factor: float,
    ) -> None:
        self._throttle = throttle
        #: Asked each time: the limits of host and job may change while it runs.
        self._ceiling = ceiling
        self._ways = [_Way(max(one_ns * factor, _UNNOTICED_NS)) for one_ns in usual_ns]
        self._rate = float(ceiling() or _CEILING_BYTES_S)
        self._throttle.set_rate(int(self._rate))

    def observe(self, finished: Sequence[tuple[int, int]]) -> None:
        """Take what was finished since the last look: of each way, how many operations and
        how many nanoseconds they took together."""
        verdicts = [way.suffers(*seen) for way, seen in zip(self._ways, finished, strict=True)]
        suffers = True in verdicts
        step = _DOWN if suffers else 1.0 if None in verdicts else _UP
        ceiling = float(self._ceiling() or _CEILING_BYTES_S)
        rate = min(ceiling, max(min(_FLOOR_BYTES_S, ceiling), self._rate * step))
        if suffers and rate < self._rate:
            LOG.info(
                "The guest's reads take %.1f ms, its writes %.1f ms; reading slower, at %.0f MB/s",
                *(total_ns / max(1, operations) / _NS_PER_MS for operations, total_ns in finished),
                rate / 1e6,
            )
        self._rate = rate
        self._throttle.set_rate(int(rate))
