# SPDX-License-Identifier: Apache-2.0
"""Killed at the begin of each step, by any method: the guest runs, the image is whole or gone."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from compute_agent.snapshot import STEPS
from tests.faults import checks
from tests.faults.faults import METHODS
from tests.functional.snapshots import Asked, ask, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest, GuestWish

#: The agent runs for so long between two looks; shorter than any step.
_SLICE_S = 0.0005
#: The upload is long, and what comes after it asks Glance: longer than this.
_SLICE_OF_THE_UPLOAD_S = 0.01
_STEP_TIMEOUT_S = 60.0
#: On a busy machine a slice may be longer than a step: then once more.
_TRIES = 5
_NAMES = tuple(step.name for step in STEPS)
#: Only a guest that runs is paused.
_IN_THE_PAUSE = ("capture", "resume")
_LATE = ("verify", "publish", "release")
BOUNDARIES = [
    pytest.param(method, step, marks=() if method == "backup" else pytest.mark.long)
    for method in METHODS
    for step in _NAMES
    if method != "offline" or step not in _IN_THE_PAUSE
]


@pytest.fixture(scope="module")
def guest_that_is_off(cloud: Cloud) -> Iterator[Guest]:
    guest = cloud.guest(GuestWish(name="test-off"))
    guest.define()
    cloud.wait_for_instance(guest, "SHUTOFF")
    yield guest
    guest.remove()


@pytest.mark.parametrize(("method", "step"), BOUNDARIES)
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
    asked = ask_and_stop_at(cloud, guest, step)
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


def ask_and_stop_at(cloud: Cloud, guest: Guest, step: str) -> Asked:
    """Ask for a snapshot; return it with the agent standing still (SIGSTOP) where a step begins."""
    for _ in range(_TRIES):
        _signal(cloud, signal.SIGSTOP)
        try:
            asked = ask(cloud, guest)
            if _stops_at(asked, step):
                return asked
        except BaseException:
            _signal(cloud, signal.SIGCONT)
            raise
        _signal(cloud, signal.SIGCONT)
        asked.ended()
    pytest.fail(f"step {step} was over before it was seen, {_TRIES} times")


def _stops_at(asked: Asked, step: str) -> bool:
    """Let the agent run in slices until the step begins; False if it was missed."""
    cloud, deadline = asked.cloud, time.monotonic() + _STEP_TIMEOUT_S
    with _journal(cloud) as journal, _domain(asked) as domain:
        if step in _LATE:
            _signal(cloud, signal.SIGCONT)
            wait_for(lambda: _journalled(journal, asked) not in (None, "prepare", "pause"), "bytes")
            _signal(cloud, signal.SIGSTOP)
        while True:
            now = _at(_journalled(journal, asked), domain)
            if now is not None and _NAMES.index(now) >= _NAMES.index(step):
                return now == step
            assert time.monotonic() < deadline, f"step {step} did not come; at last {now}"
            _signal(cloud, signal.SIGCONT)
            # The slice is the point.
            time.sleep(_SLICE_OF_THE_UPLOAD_S if now == "stream" else _SLICE_S)
            _signal(cloud, signal.SIGSTOP)


def _at(journalled: str | None, domain: libvirt.virDomain) -> str | None:
    """Return the step that has begun; of those in the pause the guest itself tells."""
    if journalled != "pause" or domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
        return journalled
    return "resume" if _has_a_frozen_view(domain) else "capture"


def _has_a_frozen_view(domain: libvirt.virDomain) -> bool:
    """Tell whether the guest writes to an overlay of ours, or a backup job stands."""
    if ".stillframe-" in domain.XMLDesc():
        return True
    with contextlib.suppress(libvirt.libvirtError):
        return bool(domain.backupGetXMLDesc())
    return False


def _journalled(journal: sqlite3.Connection, asked: Asked) -> str | None:
    """Return the step that the agent's journal names: only the instant is taken from it."""
    query = "SELECT step FROM entries WHERE request LIKE ?"
    row = journal.execute(query, (f"%{asked.image_id}%",)).fetchone()
    return None if row is None else row[0]


@contextlib.contextmanager
def _journal(cloud: Cloud) -> Iterator[sqlite3.Connection]:
    path = cloud.directory / "state" / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        yield journal


@contextlib.contextmanager
def _domain(asked: Asked) -> Iterator[libvirt.virDomain]:
    with contextlib.closing(libvirt.openReadOnly(asked.cloud.libvirtd.uri)) as connection:
        yield connection.lookupByUUIDString(asked.guest.uuid)


def _signal(cloud: Cloud, number: signal.Signals) -> None:
    pid = cloud.agent.pid
    assert pid is not None
    os.killpg(pid, number)
