# SPDX-License-Identifier: Apache-2.0
"""Runs a plan: rounds in shuffled order, each method between two bare PUTs of the same bytes."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator

from tools.bench.cases import Case, Plan
from tools.bench.figures import Sample
from tools.bench.stage import Stage, listening, private_cloud, say, settle
from tools.bench.ways import WAYS, Way, limits, ours, stops

_SEED = 20261125
_STOPS = "stops"
_PUT = "put"
#: Even a run that is late has so many rounds.
_ROUNDS_MIN = 2


def run(plan: Plan) -> list[Sample]:
    """Measure everything that the plan says, on a cloud of its own."""
    began = time.monotonic()
    shuffler = random.Random(_SEED)  # noqa: S311 # the same order each time
    samples: list[Sample] = []
    with private_cloud() as cloud, listening(cloud) as hypervisor:
        for case in plan.cases:
            with Stage(cloud, hypervisor, case, plan.quiet_s) as stage:
                samples += _Rounds(stage, plan, shuffler, began).run()
    return samples


class _Rounds:
    """The rounds of one case."""

    def __init__(self, stage: Stage, plan: Plan, shuffler: random.Random, began: float) -> None:
        self._stage = stage
        self._plan = plan
        self._shuffler = shuffler
        self._began = began
        self._put_s = 0.0

    def run(self) -> list[Sample]:
        """Return the samples of all rounds."""
        ours.keep_bytes(self._stage)
        samples = [self._put(0)]
        for number in range(self._plan.rounds):
            if number >= _ROUNDS_MIN and self._is_late():
                say(f"{self._stage.case.name}: no time for more rounds")
                break
            samples += self._round(number)
        return samples

    def _is_late(self) -> bool:
        limit_s = self._plan.time_limit_s
        return limit_s is not None and time.monotonic() - self._began > limit_s

    def _round(self, number: int) -> Iterator[Sample]:
        names = [*wanted(self._plan, self._stage.case, number), _STOPS]
        self._shuffler.shuffle(names)
        for name in names:
            if name == _STOPS:
                yield from self._stops(number)
            else:
                yield from self._pair(name, number)

    def _pair(self, name: str, number: int) -> Iterator[Sample]:
        """Run a method, then the PUT that is also the one before the next method."""
        way, before_s = WAYS[name], self._put_s
        self._stage.use(way.options)
        sample = dataclasses.replace(way.run(self._stage), method=name, round=number)
        settle()
        put = self._put(number)
        share = (sample.image_bytes or 0) / (put.image_bytes or 1)
        sample = dataclasses.replace(sample, put_s=(before_s + self._put_s) / 2 * share)
        self._tell(sample)
        yield sample
        yield put

    def _put(self, number: int) -> Sample:
        sample = dataclasses.replace(limits.put(self._stage), method=_PUT, round=number)
        settle()
        self._put_s = sample.wall_s or 0.0
        return dataclasses.replace(sample, put_s=sample.wall_s)

    def _stops(self, number: int) -> Iterator[Sample]:
        self._stage.use(WAYS["backup"].options)
        for _ in range(self._plan.stops):
            names = list(stops.STOPS)
            self._shuffler.shuffle(names)
            for name in names:
                pause_ms = stops.stop(self._stage, name)
                yield Sample(
                    case=self._stage.case.name, method=name, round=number, pauses_ms=(pause_ms,)
                )

    def _tell(self, sample: Sample) -> None:
        pause = "".join(f", paused {pause_ms:.0f} ms" for pause_ms in sample.pauses_ms)
        say(
            f"{sample.case}, round {sample.round + 1}, {sample.method}: {sample.wall_s:.2f} s, "
            f"PUT {sample.put_s:.2f} s{pause}"
        )


def wanted(plan: Plan, case: Case, number: int) -> list[str]:
    """Return the methods of a case's round, counted from 0."""
    return [
        name
        for name, way in WAYS.items()
        if way.serves(case)
        and (not plan.only or name in plan.only)
        and (number == 0 or not _is_over(way, plan))
    ]


def _is_over(way: Way, plan: Plan) -> bool:
    """Tell whether a method is through after the first round."""
    return way.once or (plan.headlines_first and not way.headline)
