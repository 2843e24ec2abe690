# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong in a rebuild, and whenever: the guest runs from one whole disk."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from tests.faults import rebuilds
from tests.faults.faults import FAULTS, Scene
from tests.faults.rebuilds import Rebuilt
from tests.faults.table import Told, table
from tests.faults.test_kills import PATIENCE_S, drawn, logs_told
from tools.stack.cloud import Cloud

METHOD = "rebuild"
#: A rebuild of the test guest takes about so long; faults come at any instant of it.
_JOB_S = 6.0
_DRAWS = 3
NAMES = [name for name, fault in FAULTS.items() if METHOD in fault.kinds]


def test_a_fault_at_any_instant_of_a_rebuild_leaves_a_guest_that_runs_from_one_whole_disk(
    request: pytest.FixtureRequest,
    cloud: Cloud,
    rebuilt: Rebuilt,
    agent_options: Callable[..., None],
    seed: int,
    dice: random.Random,
) -> None:
    agent_options(*rebuilds.OPTIONS)
    told: list[Told] = []
    count: int = request.config.getoption("--rebuilds")
    names = [name for name in request.config.getoption("--fault") or NAMES if name in NAMES]
    if not names:
        pytest.skip("these faults have nothing to hit in a rebuild")
    for number, name in enumerate(drawn(dice, names, count * _DRAWS)):
        if sum(one.counts for one in told) == count:
            break
        after_s = dice.uniform(0.0, _JOB_S)
        heals_after_s = dice.choice(FAULTS[name].heals_after_s)
        where = (
            f"fault {number + 1} for {count}: {name}, {METHOD}, {after_s:.3f} s after 202, "
            f"healed after {heals_after_s} s, --seed {seed}"
        )
        print(where, flush=True)  # with -s it can be followed
        with logs_told(cloud):
            told.append(happen(rebuilt, name, after_s, heals_after_s, where))
        print(f"    {told[-1]}", flush=True)
        path = request.config.getoption("--table")
        if path:
            path.with_stem(f"{path.stem}-rebuilds").write_text(table(told, seed))
    assert sum(one.counts for one in told) == count, f"too many came to nothing, --seed {seed}"


def happen(
    rebuilt: Rebuilt, name: str, after_s: float, heals_after_s: float | None, where: str
) -> Told:
    """Let one fault come and go, and look at what it left."""
    fault, scene = FAULTS[name], Scene(rebuilt.cloud, rebuilt.guest)
    asked = rebuilds.ask_for_rebuild(rebuilt)
    time.sleep(after_s)  # the instant is the point
    step, is_open = asked.job()["step"], asked.job()["finished_at"] is None
    began = time.monotonic()
    counts = fault.strike(scene) and is_open
    # A guest that is off may be off for its new disk: whoever started it would be in the way.
    heals_after_s = None if fault.ends_guest else heals_after_s
    if heals_after_s is not None:
        time.sleep(heals_after_s)  # how long it is away is the point
        fault.heal(scene)
    asked.ended(PATIENCE_S)
    recovered_s = time.monotonic() - began
    if heals_after_s is None:
        fault.heal(scene)
    rebuilds.assert_whole(asked, f"{where}, in step {step}")
    job = asked.job()
    reason = job["reason_code"] or ""
    return Told(name, METHOD, job["state"], reason, recovered_s, counts, step or "")
