# SPDX-License-Identifier: Apache-2.0
"""Faults that are drawn, one after another, for jobs of a kind that makes no snapshot."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from typing import Protocol

import pytest

from tests.faults.faults import FAULTS, Scene
from tests.faults.table import Told, table
from tests.faults.test_kills import PATIENCE_S, drawn, logs_told
from tests.functional.snapshots import wait_for

#: So many draws at the most for each fault that counts: some come when the job is over.
_DRAWS = 3


class Work(Protocol):
    """A job that was asked for, as faults strike it."""

    #: What can be hit of it.
    scene: Scene

    def job(self) -> dict[str, object]:
        """Return its job as `/v1/jobs` shows it."""

    def assert_whole(self, where: str) -> None:
        """It has ended, all is healed: one of two whole states, and nothing is left."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of job: its name, how one is asked for, and how long it takes about."""

    name: str
    ask: Callable[[], Work]
    job_s: float


def strike(request: pytest.FixtureRequest, kind: Kind, seed: int, dice: random.Random) -> None:
    """Let `--others` faults hit jobs of a kind, each looked at afterwards."""
    option = request.config.getoption
    count: int = option("--others")
    names = [one for one in option("--fault") or FAULTS if kind.name in FAULTS[one].kinds]
    if not names:
        pytest.skip(f"these faults have nothing to hit in a {kind.name}")
    told: list[Told] = []
    for number, name in enumerate(drawn(dice, names, count * _DRAWS)):
        if sum(one.counts for one in told) == count:
            break
        after_s = dice.uniform(0.0, kind.job_s)
        heals_after_s = dice.choice(FAULTS[name].heals_after_s)
        where = (
            f"fault {number + 1} for {count}: {name}, {kind.name}, {after_s:.3f} s after 202, "
            f"healed after {heals_after_s} s, --seed {seed}"
        )
        print(where, flush=True)  # with -s it can be followed
        work = kind.ask()
        with logs_told(work.scene.cloud):
            told.append(_happen(work, kind.name, name, after_s, heals_after_s, where))
        print(f"    {told[-1]}", flush=True)
        if path := option("--table"):
            path.with_stem(f"{path.stem}-{kind.name}").write_text(table(told, seed))
    assert sum(one.counts for one in told) == count, f"too many came to nothing, --seed {seed}"


def _happen(
    work: Work, kind: str, name: str, after_s: float, heals_after_s: float | None, where: str
) -> Told:
    """Let one fault come and go, and look at what it left."""
    fault = FAULTS[name]
    time.sleep(after_s)  # the instant is the point
    job = work.job()
    began = time.monotonic()
    counts = fault.strike(work.scene) and job["finished_at"] is None
    # A guest that is off may be off for its new disk: whoever started it would be in the way.
    heals_after_s = None if fault.ends_guest else heals_after_s
    if heals_after_s is not None:
        time.sleep(heals_after_s)  # how long it is away is the point
        fault.heal(work.scene)
    wait_for(lambda: work.job()["finished_at"], f"the end of the job ({where})", PATIENCE_S)
    recovered_s = time.monotonic() - began
    if heals_after_s is None:
        fault.heal(work.scene)
    step = str(job["step"] or "")
    work.assert_whole(f"{where}, in step {step}")
    ended = work.job()
    reason = str(ended["reason_code"] or "")
    return Told(name, kind, str(ended["state"]), reason, recovered_s, counts, step)
