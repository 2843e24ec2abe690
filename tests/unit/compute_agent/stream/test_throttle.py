# SPDX-License-Identifier: Apache-2.0
"""The throttle holds its rate, shares it fairly, and lets nobody wait who must not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from compute_agent.stream.throttle import Throttle

MIB = 1 << 20
KIB = 1 << 10


class Scheduler:
    """A clock that moves on only when every job waits: then to the first one's end."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._changed = threading.Condition()
        self._until: dict[int, float] = {}
        self._jobs = 0

    def clock(self) -> float:
        return self.now_s

    def wait(self, event: threading.Event, seconds: float) -> bool:
        me = threading.get_ident()
        with self._changed:
            self._until[me] = self.now_s + seconds
            self._move_on()
            self._changed.wait_for(lambda: self._until[me] <= self.now_s, timeout=10)
            del self._until[me]
        return event.is_set()

    def run(self, jobs: list[Callable[[], None]]) -> None:
        """Run the jobs in threads until all have returned."""
        self._jobs = len(jobs)
        threads = [threading.Thread(target=self._job, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()

    def _job(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            with self._changed:
                self._jobs -= 1
                self._move_on()

    def _move_on(self) -> None:
        waiting = [until for until in self._until.values() if until > self.now_s]
        if waiting and len(waiting) == self._jobs:
            self.now_s = min(waiting)
            self._changed.notify_all()


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


def taker(
    throttle: Throttle, scheduler: Scheduler, piece_bytes: int, seconds: float, got: list[int]
) -> Callable[[], None]:
    def take() -> None:
        lease = throttle.lease(threading.Event())
        total = 0
        while scheduler.now_s < seconds:
            lease.take(piece_bytes)
            total += piece_bytes
        got.append(total)

    return take


def test_one_job_gets_the_whole_rate(scheduler: Scheduler) -> None:
    throttle = Throttle(100 * MIB, clock=scheduler.clock, wait=scheduler.wait)
    got: list[int] = []
    scheduler.run([taker(throttle, scheduler, MIB, 10, got)])
    assert got[0] == pytest.approx(1000 * MIB, rel=0.02)


@pytest.mark.parametrize("pieces", [(MIB, MIB, MIB), (MIB, 64 * KIB, 256 * KIB)], ids=str)
def test_jobs_share_byte_for_byte_whatever_their_pieces(
    scheduler: Scheduler, pieces: tuple[int, ...]
) -> None:
    throttle = Throttle(60 * MIB, clock=scheduler.clock, wait=scheduler.wait)
    got: list[int] = []
    scheduler.run([taker(throttle, scheduler, piece, 10, got) for piece in pieces])
    assert sum(got) == pytest.approx(600 * MIB, rel=0.03)
    for one in got:
        assert one == pytest.approx(200 * MIB, rel=0.05)


def test_an_idle_bucket_does_not_save_up_for_more_than_a_moment(scheduler: Scheduler) -> None:
    throttle = Throttle(100 * MIB, clock=scheduler.clock, wait=scheduler.wait)
    scheduler.now_s = 3600.0
    got: list[int] = []
    scheduler.run([taker(throttle, scheduler, MIB, 3601, got)])
    assert got[0] <= 112 * MIB


def test_no_limit_means_no_wait() -> None:
    def never(event: threading.Event, seconds: float) -> bool:
        raise AssertionError("waited")

    lease = Throttle(0, wait=never).lease(threading.Event())
    assert all(lease.take(100 * MIB) for _ in range(100))


def test_a_changed_rate_counts_at_once_also_for_those_who_wait() -> None:
    throttle = Throttle(1)
    done = threading.Event()

    def take() -> None:
        throttle.lease(threading.Event()).take(MIB)
        done.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not done.wait(0.05)
    throttle.set_rate(0)
    assert done.wait(2)
    thread.join()


def test_a_stopped_job_waits_no_longer_and_gives_its_turn_back() -> None:
    throttle = Throttle(1)
    stopped = threading.Event()
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.append(throttle.lease(stopped).take(MIB)))
    thread.start()
    began = time.monotonic()
    stopped.set()
    thread.join(2)
    assert taken == [False]
    assert time.monotonic() - began < 1
    assert throttle._seconds_until(throttle._asked) <= 0, "those behind it wait no longer"
