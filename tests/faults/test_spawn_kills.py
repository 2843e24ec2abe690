# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong while a server is made, and whenever: it runs, or nothing is left of it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.faults import draw
from tests.faults.rebuilds import Rebuilt
from tests.faults.servers import ask_for_server
from tools.stack.cloud import Cloud


@pytest.mark.long
def test_a_fault_at_any_instant_of_a_create_leaves_a_server_that_runs_or_nothing(
    request: pytest.FixtureRequest,
    cloud: Cloud,
    rebuilt: Rebuilt,
    agent_options: Callable[..., None],
    seed: int,
    dice: random.Random,
) -> None:
    agent_options("bandwidth_limit = 60")
    image_id = rebuilt.images[1]
    kind = draw.Kind(name="create", ask=lambda: ask_for_server(cloud, image_id), job_s=3.0)
    draw.strike(request, kind, seed, dice)
