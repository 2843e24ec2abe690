# SPDX-License-Identifier: Apache-2.0
"""Killed wherever a new server comes to be: it is there and runs, or nothing of it is."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
from collections.abc import Callable, Iterator

import libvirt
import pytest
import requests

from compute_agent.spawn import STEPS
from tests.faults import slices
from tests.faults.slices import NOT_YET, NOW, Journal
from tests.functional.snapshots import ADMIN, wait_for
from tests.functional.test_spawn import (
    create,
    delete,
    left_of,
    place,
    show,
    upload,
    wait_for_status,
)
from tools.stack.cloud import Cloud

_TRIES = 4
_ORDER = (*(step.name for step in STEPS), "done")


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What is seen of a new server from outside while the agent stands still."""

    has_disk: bool
    is_defined: bool
    runs: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Instant:
    """Where the agent is killed: in a step, as soon as something is seen."""

    step: str
    is_now: Callable[[Seen], bool]
    #: The server is there in the end.
    is_made: bool = False


INSTANTS = {
    "build begins": Instant("build", lambda seen: not seen.has_disk),
    "build ends": Instant("define", lambda seen: seen.has_disk and not seen.is_defined),
    "define ends": Instant("define", lambda seen: seen.is_defined),
    "start ends": Instant("start", lambda seen: seen.runs),
    "release begins": Instant("release", lambda seen: seen.runs, is_made=True),
}


@pytest.fixture(scope="module")
def image_id(cloud: Cloud) -> str:
    """A disk with nothing on it, which is brought in a moment."""
    return upload(cloud, bytes(1 << 20), "raw")


@pytest.mark.parametrize("name", INSTANTS)
def test_a_kill_where(cloud: Cloud, image_id: str, name: str) -> None:
    instant = INSTANTS[name]
    server_id = create_and_kill_at(cloud, image_id, instant, name)
    if instant.is_made:
        assert cloud.libvirtd.virsh("domstate", server_id).strip() == "running"
        assert sorted(path.name for path in place(cloud, server_id).iterdir()) == [
            "console.log",
            "disk",
        ]
    else:
        fault = show(cloud, server_id)["fault"]["message"]
        assert "ended during the create" in fault, name
        assert left_of(cloud, server_id) == [], name
    assert show(cloud, server_id)["OS-EXT-STS:task_state"] is None
    delete(cloud, server_id)
    assert left_of(cloud, server_id) == [], name


def create_and_kill_at(cloud: Cloud, image_id: str, instant: Instant, name: str) -> str:
    """Kill the agent there, and start another; return the server's id when that has seen to it."""
    for _ in range(_TRIES):
        server_id = create_and_stop_at(cloud, image_id, instant, name)
        cloud.agent.kill()
        cloud.start_agent()
        status = wait_for(
            functools.partial(in_the_end, cloud, server_id), "what became of the server"
        )
        if (status == "ACTIVE") is instant.is_made:
            return server_id
        # The next step's begin was on its way to the disk, where nobody could read it yet.
        assert status == "ACTIVE", name
        delete(cloud, server_id)
    pytest.fail(f"{name}: the next step had begun, {_TRIES} times")


def in_the_end(cloud: Cloud, server_id: str) -> str | None:
    """Return a server's status, None while it is being made."""
    status: str = show(cloud, server_id)["status"]
    return None if status == "BUILD" else status


def create_and_stop_at(cloud: Cloud, image_id: str, instant: Instant, name: str) -> str:
    """Ask for a server; return its id with the agent standing still at the instant."""
    for _ in range(_TRIES):
        slices.signal_agent(cloud, signal.SIGSTOP)
        try:
            server_id = create(cloud, image_id)
        except BaseException:
            slices.signal_agent(cloud, signal.SIGCONT)
            raise
        if _stops_at(cloud, server_id, instant):
            return server_id
        slices.signal_agent(cloud, signal.SIGCONT)
        wait_for_status(cloud, server_id, "ACTIVE")
        delete(cloud, server_id)
    pytest.fail(f"{name}: that was over before it was seen, {_TRIES} times")


def _stops_at(cloud: Cloud, server_id: str, instant: Instant) -> bool:
    query = f"{cloud.api_url}/v1/jobs?instance_uuid={server_id}"
    job_id = requests.get(query, headers=ADMIN, timeout=10).json()["jobs"][0]["id"]
    with slices.journal_of(cloud) as journal, _libvirt(cloud) as connection:

        def look() -> int:
            return _look(journal, job_id, instant, _seen(cloud, server_id, connection))

        return slices.stop_where(look, cloud)


def _look(journal: Journal, job_id: str, instant: Instant, seen: Seen) -> int:
    found = slices.place_of(journal.step(job_id), instant.step, _ORDER)
    return NOT_YET if found == NOW and not instant.is_now(seen) else found


def _seen(cloud: Cloud, server_id: str, connection: libvirt.virConnect) -> Seen:
    has_disk = (place(cloud, server_id) / "disk").exists()
    try:
        domain = connection.lookupByUUIDString(server_id)
        runs = domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    except libvirt.libvirtError:
        return Seen(has_disk=has_disk, is_defined=False, runs=False)
    return Seen(has_disk=has_disk, is_defined=True, runs=runs)


@contextlib.contextmanager
def _libvirt(cloud: Cloud) -> Iterator[libvirt.virConnect]:
    with contextlib.closing(libvirt.openReadOnly(cloud.libvirtd.uri)) as connection:
        yield connection
