# SPDX-License-Identifier: Apache-2.0
"""The methods that are compared, one line each in WAYS."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from tools.bench.cases import Case
from tools.bench.figures import Sample
from tools.bench.stage import Stage
from tools.bench.ways import limits, nova, ours

_DEFAULT_LIMIT_MB_S = 200
_HALF_LIMIT_MB_S = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A method: how one run of it is measured, and what the agent is told before."""

    run: Callable[[Stage], Sample]
    #: Lines of [capture].
    options: tuple[str, ...] = ()
    #: In every round even of a quick run.
    headline: bool = False
    #: Only beside a guest that does not write.
    idle_only: bool = False
    #: Shows something that one run shows.
    once: bool = False

    def serves(self, case: Case) -> bool:
        """Tell whether the method is measured in that case."""
        return not (self.idle_only and case.writes)


def _limited(limit_mb_s: int) -> Callable[[Stage], Sample]:
    return functools.partial(ours.snapshot, limit_mb_s=limit_mb_s)


WAYS: dict[str, Way] = {
    "backup": Way(run=ours.snapshot, headline=True),
    "backup-limited": Way(
        run=_limited(_DEFAULT_LIMIT_MB_S),
        options=(f"bandwidth_limit = {_DEFAULT_LIMIT_MB_S}",),
        headline=True,
    ),
    "backup-100": Way(
        run=_limited(_HALF_LIMIT_MB_S),
        options=(f"bandwidth_limit = {_HALF_LIMIT_MB_S}",),
        idle_only=True,
        once=True,
    ),
    "backup-never": Way(run=ours.snapshot, options=("pause = never",)),
    "overlay": Way(run=ours.snapshot, options=("method = overlay",)),
    "offline": Way(run=ours.offline, idle_only=True),
    "increment": Way(run=ours.increment, options=("checkpoints = true",), idle_only=True),
    "nova-live": Way(run=nova.live, headline=True),
    "nova-cold": Way(run=nova.cold, headline=True),
    "cold-lean-put": Way(run=nova.cold_lean),
    "read": Way(run=limits.read),
    "put-chunked": Way(run=functools.partial(limits.put, chunked=True)),
}
