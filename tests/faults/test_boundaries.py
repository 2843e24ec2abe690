# SPDX-License-Identifier: Apache-2.0
"""Killed at the begin of each step, by any method: the guest runs, the image is whole or gone."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compute_agent.snapshot import JOURNALLED
from tests.faults import checks
from tests.functional.snapshots import Asked, ask
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest, GuestWish

METHODS = (
    "backup",
    pytest.param("overlay", marks=pytest.mark.long),
    pytest.param("offline", marks=pytest.mark.long),
)
_LOOK_S = 0.0005
_STEP_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def guest_that_is_off(cloud: Cloud) -> Iterator[Guest]:
    guest = cloud.guest(GuestWish(name="test-off"))
    guest.define()
    cloud.wait_for_instance(guest, "SHUTOFF")
    yield guest
    guest.remove()


@pytest.mark.parametrize("step", JOURNALLED)
@pytest.mark.parametrize("method", METHODS)
def test_a_kill_at_the_begin_of_a_step(
    cloud: Cloud,
    running_guest: Guest,
    guest_that_is_off: Guest,
    agent_options: Callable[..., None],
    tmp_path: Path,
    method: str,
    step: str,
) -> None:
    where = f"{method}, killed at the begin of {step}"
    is_off = method == "offline"
    agent_options("method = auto" if is_off else f"method = {method}")
    guest = guest_that_is_off if is_off else running_guest
    asked = ask(cloud, guest)
    wait_for_step(cloud, asked, step)
    cloud.agent.kill()
    if not is_off:
        checks.assert_runs(guest, where)
    cloud.start_agent()
    job = asked.ended()
    if step in ("release", "publish"):
        assert job["state"] == "done", where
    checks.assert_whole_or_gone(asked, tmp_path, where)
    checks.assert_untouched(cloud, guest, where)
    checks.assert_told(asked, where)


def wait_for_step(cloud: Cloud, asked: Asked, step: str) -> None:
    """Return as soon as the agent's journal names that step: only the instant is taken from it.

    A short step may be over before it is seen; the next one then is the instant.
    """
    due = JOURNALLED[JOURNALLED.index(step) :]
    path = cloud.directory / "state" / "journal.sqlite"
    query = "SELECT step FROM entries WHERE request LIKE ?"
    deadline = time.monotonic() + _STEP_TIMEOUT_S
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        while True:
            row = journal.execute(query, (f"%{asked.image_id}%",)).fetchone()
            if row is not None and row[0] in due:
                return
            assert time.monotonic() < deadline, f"step {step} did not come; at last {row}"
            time.sleep(_LOOK_S)  # shorter than any step
