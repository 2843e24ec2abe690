# SPDX-License-Identifier: Apache-2.0
"""An agent that is let run in slices, until it is where a test wants to kill it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence

from tests.functional.snapshots import wait_for
from tools.stack.cloud import Cloud

#: The agent runs for so long between two looks; shorter than any step.
SLICE_S = 0.0005
_TIMEOUT_S = 60.0

#: What a look at the agent's work finds: the instant has not come, is now, or is over.
NOT_YET, NOW, OVER = -1, 0, 1


def stop_where(look: Callable[[], int], cloud: Cloud) -> bool:
    """Let the agent run in slices until `look` says NOW; False if it was missed.

    The agent stands still (SIGSTOP) then, whatever came of it.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    signal_agent(cloud, signal.SIGSTOP)
    try:
        while (found := _found(look)) == NOT_YET:
            assert time.monotonic() < deadline, "the instant did not come"
            signal_agent(cloud, signal.SIGCONT)
            time.sleep(SLICE_S)  # the slice is the point
            signal_agent(cloud, signal.SIGSTOP)
    except BaseException:
        signal_agent(cloud, signal.SIGCONT)
        raise
    return found == NOW


def _found(look: Callable[[], int]) -> int:
    try:
        return look()
    except sqlite3.OperationalError:
        return NOT_YET  # the agent stands still with its journal locked


def signal_agent(cloud: Cloud, number: signal.Signals) -> None:
    """Send a signal to the agent's whole process group."""
    pid = cloud.agent.pid
    assert pid is not None
    os.killpg(pid, number)


def place_of(step: str | None, wanted: str, order: Sequence[str]) -> int:
    """Return where a job is that has begun a step, as seen from the wanted one."""
    if step is None or order.index(step) < order.index(wanted):
        return NOT_YET
    return NOW if step == wanted else OVER


class Journal:
    """The agent's journal, read only: nothing but the instant is taken from it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def step(self, job_id: str) -> str | None:
        """Return the step of a job that began last; "done" when the job has ended."""
        query = "SELECT step, outcome FROM entries WHERE job_id = ?"
        row = self._connection.execute(query, (job_id,)).fetchone()
        step, outcome = row or (None, None)
        return step if outcome is None else "done"

    def wait_for(self, job_id: str, *steps: str) -> None:
        """Wait until the job is in one of these steps."""
        wait_for(lambda: self.step(job_id) in steps, f"one of the steps {steps}")


@contextlib.contextmanager
def journal_of(cloud: Cloud) -> Iterator[Journal]:
    """Open the journal of a cloud's agent."""
    path = cloud.directory / "state" / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        yield Journal(journal)
