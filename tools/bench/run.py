# SPDX-License-Identifier: Apache-2.0
"""Runs a plan: rounds in shuffled order, each method between two bare PUTs of the same bytes."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Collection, Iterator

from tools.bench.cases import Course, Plan
from tools.bench.figures import Sample
from tools.bench.stage import Stage, listening, private_cloud, say, settle
from tools.bench.ways import WAYS, limits, ours, stops

_SEED = 20261125
_STOPS = "stops"
_PUT = "put"

#: The rows of a case.
ORDER = (*WAYS, _PUT, *(name for name in stops.STOPS if name not in WAYS))


def run(plan: Plan) -> list[Sample]:
    """Measure everything that the plan says, on a cloud of its own."""
    began = time.monotonic()
    shuffler = random.Random(_SEED)  # noqa: S311 # the same order each time
    samples: list[Sample] = []
    with private_cloud(image_store=plan.image_store) as cloud, listening(cloud) as hypervisor:
        for course in plan.courses:
            with Stage(cloud, hypervisor, course.case, plan.quiet_s) as stage:
                rounds = _Rounds(stage, course, plan.only, shuffler)
                samples += rounds.run(until=began + course.until_s)
    return samples


def wanted(course: Course, only: Collection[str], number: int) -> list[str]:
    """Return what a round of a course, counted from 0, is of; `only` are methods, if any."""
    names = [
        name
        for name, way in WAYS.items()
        if way.serves(course.case)
        and (not only or name in only)
        and (way.headline or number < course.extra_rounds)
        and not (way.once and number)
    ]
    return [*names, _STOPS] if course.stops else names


def _is_extra(name: str) -> bool:
    return name in WAYS and not WAYS[name].headline


class _Rounds:
    """The rounds of one case."""

    def __init__(
        self, stage: Stage, course: Course, only: Collection[str], shuffler: random.Random
    ) -> None:
        self._stage = stage
        self._course = course
        self._only = only
        self._shuffler = shuffler
        self._put_s = 0.0

    def run(self, until: float) -> list[Sample]:
        """Return the samples of all rounds; after `until`, only what must not be missing."""
        self._stage.use(WAYS["backup"].options)
        ours.keep_bytes(self._stage)
        samples = [self._put(0)]
        for number in range(self._course.rounds):
            if number and time.monotonic() > until:
                say(f"{self._stage.case.name}: no time for round {number + 1}")
                break
            samples += self._round(number, until)
        return samples

    def _round(self, number: int, until: float) -> Iterator[Sample]:
        names = wanted(self._course, self._only, number)
        self._shuffler.shuffle(names)
        if until < math.inf:
            names.sort(key=_is_extra)  # what may be left out comes last
        for name in names:
            if name == _STOPS:
                yield from self._stops(number)
            elif not _is_extra(name) or time.monotonic() < until:
                yield from self._pair(name, number)
            else:
                say(f"{self._stage.case.name}: no time for {name}")

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
        for _ in range(self._course.stops):
            for sample in stops.each(self._stage, self._shuffler):
                yield dataclasses.replace(sample, round=number)

    def _tell(self, sample: Sample) -> None:
        pause = "".join(f", paused {pause_ms:.0f} ms" for pause_ms in sample.pauses_ms)
        say(
            f"{sample.case}, round {sample.round + 1}, {sample.method}: {sample.wall_s:.2f} s, "
            f"PUT {sample.put_s:.2f} s{pause}"
        )
