# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong in a rebuild, and whenever: the guest runs from one whole disk."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.faults import draw, rebuilds
from tests.faults.rebuilds import Rebuilt


def test_a_fault_at_any_instant_of_a_rebuild_leaves_a_guest_that_runs_from_one_whole_disk(
    request: pytest.FixtureRequest,
    rebuilt: Rebuilt,
    agent_options: Callable[..., None],
    seed: int,
    dice: random.Random,
) -> None:
    agent_options(*rebuilds.OPTIONS)
    kind = draw.Kind(name="rebuild", ask=lambda: rebuilds.ask_for_rebuild(rebuilt), job_s=6.0)
    draw.strike(request, kind, seed, dice)
