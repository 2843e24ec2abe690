# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong in a backup, and whenever: the last whole one is there, and no other."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import draw
from tests.faults.backups import ask_for_backup
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest


@pytest.mark.long
def test_a_fault_at_any_instant_of_a_backup_leaves_the_last_whole_one(
    request: pytest.FixtureRequest,
    cloud: Cloud,
    running_guest: Guest,
    agent_options: Callable[..., None],
    tmp_path: Path,
    seed: int,
    dice: random.Random,
) -> None:
    agent_options("bandwidth_limit = 0")
    first = ask_for_backup(cloud, running_guest, tmp_path)
    assert first.asked.ended()["state"] == "done"
    first.assert_whole("before any fault")
    agent_options()

    def ask() -> draw.Work:
        return ask_for_backup(cloud, running_guest, tmp_path)

    draw.strike(request, draw.Kind(name="backup", ask=ask, job_s=4.5), seed, dice)
