# SPDX-License-Identifier: Apache-2.0
"""How long the vCPUs stand still, in three ways: bare, as one would write it, and ours.

Each returns milliseconds between QEMU's own STOP and RESUME stamps.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

from tools.bench import client
from tools.bench.figures import Sample
from tools.bench.stage import Stage
from tools.bench.ways.pull_job import PullJob

_STAMPS_TIMEOUT_S = 30.0
_SETTLE_S = 0.2
#: The snapshot is cancelled as soon as the guest runs on: hardly a byte is to be read until then.
_CRAWL = {"stillframe:bandwidth_limit": "1"}


def bare(stage: Stage) -> float:
    """Suspend and resume, with nothing between."""
    domain, since = stage.domain, time.time()
    domain.suspend()
    domain.resume()
    return _stop_ms(stage, since)


def straightforward(stage: Stage) -> float:
    """Suspend; a backup job with a checkpoint, its scratch made by libvirt; resume."""
    domain, since = stage.domain, time.time()
    with PullJob(stage) as job:
        domain.suspend()
        try:
            job.begin(checkpoint=True)
        finally:
            domain.resume()
    return _stop_ms(stage, since)


def ours(stage: Stage) -> float:
    """Ask for a snapshot, and cancel it when the guest runs again."""
    since = time.time()
    asked = client.ask(stage.cloud, stage.guest, **_CRAWL)
    try:
        return _stop_ms(stage, since)
    finally:
        asked.cancelled()


#: The rows that they belong to.
STOPS: dict[str, Callable[[Stage], float]] = {
    "pause-bare": bare,
    "pause-straightforward": straightforward,
    "backup": ours,
}


def each(stage: Stage, shuffler: random.Random) -> Iterator[Sample]:
    """Stop the guest once in each way, in some order; let it run for a moment before each."""
    names = list(STOPS)
    shuffler.shuffle(names)
    for name in names:
        time.sleep(_SETTLE_S)
        stop_ms = STOPS[name](stage)
        yield Sample(case=stage.case.name, method=name, pauses_ms=(stop_ms,))


def _stop_ms(stage: Stage, since: float) -> float:
    stops = stage.stop_since(since, _STAMPS_TIMEOUT_S)
    if not stops:
        raise RuntimeError("QEMU told of no stop")
    return stops[0]
