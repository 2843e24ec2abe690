# SPDX-License-Identifier: Apache-2.0
"""The way to RabbitMQ is cut, or hangs, or gives a message twice, and no promise is broken."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import pytest
import requests

from tests.functional.conftest import connected_to
from tests.functional.snapshots import ADMIN, amid_upload, ask, log_lines, wait_for
from tests.functional.test_bad_luck import cast
from tests.functional.wire import Wire
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

#: Production has a minute; what it leads to is the same.
_HEARTBEAT_S = 4
#: An answer may take so long while the broker cannot be reached: it is not waited for.
_ANSWER_S = 5.0


@pytest.fixture(scope="module")
def wired(cloud: Cloud) -> Iterator[tuple[Wire, Wire]]:
    """The daemons know the broker as two hosts; each is a wire to the same RabbitMQ."""
    with Wire(cloud.rabbitmq.port) as one, Wire(cloud.rabbitmq.port) as other:
        hosts = ",".join(f"guest:guest@127.0.0.1:{wire.port}" for wire in (one, other))
        url = f"rabbit://{hosts}/?heartbeat_timeout_threshold={_HEARTBEAT_S}"
        with connected_to(cloud, url):
            yield one, other


@pytest.fixture
def wires(wired: tuple[Wire, Wire]) -> Iterator[tuple[Wire, Wire]]:
    """Both wires, whole before and after a test."""
    yield wired
    for wire in wired:
        wire.mend()


def jobs_of(cloud: Cloud, guest: Guest) -> list[dict[str, str]]:
    query = f"{cloud.api_url}/v1/jobs?instance_uuid={guest.uuid}"
    found: list[dict[str, str]] = requests.get(query, headers=ADMIN, timeout=10).json()["jobs"]
    return found


def agent_is_up(cloud: Cloud) -> bool:
    services = cloud.get("/v2.1/os-services")["services"]
    return [one["state"] for one in services if one["host"] == cloud.host] == ["up"]


def test_connections_that_are_cut_are_made_again_and_what_was_asked_meanwhile_is_done(
    cloud: Cloud, wires: tuple[Wire, Wire], new_guest: Callable[..., Guest]
) -> None:
    guests = [new_guest(start=False) for _ in range(2)]
    before = amid_upload(cloud, guests[0])
    for wire in wires:
        wire.cut()
    began = time.monotonic()
    meanwhile = ask(cloud, guests[1])
    assert time.monotonic() - began < _ANSWER_S
    wait_for(lambda: image_is_active(before.image()), "the end of the upload")
    assert before.job()["finished_at"] is None, "nobody can have told"
    assert meanwhile.job()["state"] == "pending"
    for wire in wires:
        wire.mend()
    for asked in (before, meanwhile):
        job = asked.ended()
        assert job["state"] == "done", job["reason"]
        assert len(jobs_of(cloud, asked.guest)) == 1
    wait_for(lambda: agent_is_up(cloud), "the agent to be up")


def image_is_active(image: dict[str, str] | None) -> bool:
    return image is not None and image["status"] == "active"


def test_a_host_that_hangs_is_left_for_another(
    cloud: Cloud, wires: tuple[Wire, Wire], new_guest: Callable[..., Guest]
) -> None:
    """It accepts connections and says nothing: only heartbeats can tell."""
    guest = new_guest(start=False)
    asked = amid_upload(cloud, guest)
    hung, whole = sorted(wires, key=lambda wire: -wire.connections)
    assert hung.connections
    before = whole.connections
    hung.hang()
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    wait_for(lambda: whole.connections > before, "connections to the other host")
    wait_for(lambda: agent_is_up(cloud), "the agent to be up")
    again = ask(cloud, guest).ended()
    assert again["state"] == "done", again["reason"]
    assert len(jobs_of(cloud, guest)) == 2


def test_a_request_that_comes_again_and_again_is_done_once(
    cloud: Cloud, new_guest: Callable[..., Guest]
) -> None:
    guest, job_id, image_id = new_guest(start=False), str(uuid.uuid4()), str(uuid.uuid4())
    url = f"{cloud.glance.endpoint}/v2/images"
    requests.post(url, json={"id": image_id, "name": "again", "owner": "demo"}, timeout=10)
    request = {"instance": {"uuid": guest.uuid}, "image_id": image_id, "job_id": job_id}
    cast(cloud, "snapshot_instance", **request)
    cast(cloud, "snapshot_instance", **request)

    def job() -> dict[str, str] | None:
        return next((one for one in jobs_of(cloud, guest) if one["finished_at"]), None)

    ended = wait_for(job, "the job's end")
    assert ended["state"] == "done"
    cast(cloud, "snapshot_instance", **request)
    wait_for(
        lambda: len(log_lines(cloud, "n-cpu.log", job_id, "changes nothing")) == 2,
        "both repetitions in the log",
    )
    assert jobs_of(cloud, guest) == [ended]
    assert len(log_lines(cloud, "n-cpu.log", image_id, "Uploading image")) == 1
