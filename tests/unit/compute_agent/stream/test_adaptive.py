# SPDX-License-Identifier: Apache-2.0
"""The rate gives way while the guest suffers and comes back when it does not."""

from __future__ import annotations

import pytest

from compute_agent.stream.adaptive import AdaptiveRate
from compute_agent.stream.throttle import Throttle

MB = 10**6
MS = 10**6


def rate_of(throttle: Throttle, ceiling_mb: int = 200) -> AdaptiveRate:
    return AdaptiveRate(
        throttle, ceiling=lambda: ceiling_mb * MB, usual_ns=[3 * MS, 3 * MS], factor=4.0
    )


def test_it_begins_at_the_limit() -> None:
    throttle = Throttle(0)
    rate_of(throttle)
    assert throttle.rate_bytes_s == 200 * MB


def test_a_guest_that_suffers_slows_it_down_to_a_floor() -> None:
    throttle = Throttle(0)
    rate = rate_of(throttle)
    rates = []
    for _ in range(20):
        rate.observe([(0, 0), (10, 10 * 50 * MS)])
        rates.append(throttle.rate_bytes_s)
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 200 * MB
    assert rates[-1] == 10 * MB, "a snapshot must end some time"


def test_a_guest_that_has_recovered_gets_it_back_slowly() -> None:
    throttle = Throttle(0)
    rate = rate_of(throttle)
    for _ in range(3):
        rate.observe([(0, 0), (10, 10 * 50 * MS)])
    low = throttle.rate_bytes_s
    rate.observe([(0, 0), (10, 10 * 3 * MS)])
    assert low < throttle.rate_bytes_s < 200 * MB
    for _ in range(50):
        rate.observe([(0, 0), (0, 0)])
    assert throttle.rate_bytes_s == 200 * MB


def test_a_guest_that_suffers_so_that_it_finishes_nothing_gets_no_less_room() -> None:
    """Each of its writes takes three seconds, and in most looks none has come to its end."""
    throttle = Throttle(0)
    rate = rate_of(throttle)
    rates = []
    for look in range(120):
        ends = look % 8 == 0
        rate.observe([(0, 0), (int(ends), 3000 * MS if ends else 0)])
        rates.append(throttle.rate_bytes_s)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 10 * MB


@pytest.mark.parametrize("way", [0, 1], ids=["reads", "writes"])
def test_many_that_are_fast_do_not_hide_few_that_are_slow(way: int) -> None:
    throttle = Throttle(0)
    rate = rate_of(throttle)
    seen = [(400, 400 * MS // 10)] * 2
    seen[way] = (4, 4 * 100 * MS)
    rate.observe(seen)
    low = throttle.rate_bytes_s
    assert low < 200 * MB
    seen[way] = (0, 0)
    rate.observe(seen)
    assert throttle.rate_bytes_s == low, "none of the slow ones has come to its end"


def test_writes_are_not_slow_because_reads_are_fast() -> None:
    throttle = Throttle(0)
    rate = AdaptiveRate(throttle, ceiling=lambda: 200 * MB, usual_ns=[0.1 * MS, 5 * MS], factor=4.0)
    rate.observe([(10, MS), (10, 10 * 6 * MS)])
    assert throttle.rate_bytes_s == 200 * MB


def test_what_nobody_notices_is_no_suffering() -> None:
    """4 times a tenth of a millisecond is still nothing."""
    throttle = Throttle(0)
    rate = AdaptiveRate(
        throttle, ceiling=lambda: 200 * MB, usual_ns=[0.1 * MS, 0.1 * MS], factor=4.0
    )
    rate.observe([(0, 0), (10, 10 * MS)])
    assert throttle.rate_bytes_s == 200 * MB


def test_a_limit_below_the_floor_is_obeyed() -> None:
    throttle = Throttle(0)
    rate = rate_of(throttle, ceiling_mb=5)
    rate.observe([(0, 0), (10, 10 * 50 * MS)])
    assert throttle.rate_bytes_s == 5 * MB


def test_limits_that_change_meanwhile_are_followed() -> None:
    throttle, limits = Throttle(0), [200]
    rate = AdaptiveRate(
        throttle, ceiling=lambda: limits[-1] * MB, usual_ns=[3 * MS, 3 * MS], factor=4.0
    )
    limits.append(5)
    rate.observe([(0, 0), (10, 10 * MS)])
    assert throttle.rate_bytes_s == 5 * MB
    limits.append(400)
    for _ in range(50):
        rate.observe([(0, 0), (10, 10 * MS)])
    assert throttle.rate_bytes_s == 400 * MB
