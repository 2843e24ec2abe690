# SPDX-License-Identifier: Apache-2.0
"""Three RabbitMQ nodes with quorum queues: one may go, or all be full, and no promise is broken."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.functional.conftest import connected_to
from tests.functional.meddler import Meddler
from tests.functional.snapshots import ADMIN, amid_upload, ask, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.rabbitmq import RabbitMq, RabbitMqCluster

_BURST = 6
#: An answer may take so long while the broker takes nothing: it is not waited for.
_ANSWER_S = 5.0


@pytest.fixture(scope="module")
def cluster(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMqCluster]:
    """A broker of three nodes, instead of the cloud's own."""
    cluster = RabbitMqCluster(tmp_path_factory.mktemp("rabbitmq-cluster"))
    try:
        cluster.start()
        with connected_to(cloud, cluster.transport_url):
            yield cluster
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def _all_nodes_again(cluster: RabbitMqCluster) -> Iterator[None]:
    """Each test begins, and leaves the next, with three nodes."""
    yield
    if any(node.process.pid is None for node in cluster.nodes):
        cluster.start()


def leader(cloud: Cloud, cluster: RabbitMqCluster) -> RabbitMq:
    """Return the node that leads the queue of the agent."""
    return cluster.leader_of(f"stillframe-compute.{cloud.host}")


def test_a_node_that_dies_in_an_upload_costs_the_job_nothing(
    cloud: Cloud, cluster: RabbitMqCluster, running_guest: Guest
) -> None:
    asked = amid_upload(cloud, running_guest)
    leader(cloud, cluster).process.kill()
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    assert job["image_id"] == asked.image_id
    again = ask(cloud, running_guest).ended()
    assert again["state"] == "done", "two of three nodes are a broker"


def test_a_node_that_dies_in_a_burst_of_requests_loses_and_doubles_none(
    cloud: Cloud, cluster: RabbitMqCluster, new_guest: Callable[..., Guest]
) -> None:
    guests = [new_guest(start=False) for _ in range(_BURST)]
    with ThreadPoolExecutor(_BURST) as pool:
        asking = [pool.submit(ask, cloud, guest) for guest in guests]
        leader(cloud, cluster).process.kill()
        asked = [one.result() for one in asking]
    for one in asked:
        job = one.ended()
        assert job["state"] == "done", job["reason"]
        query = f"{cloud.api_url}/v1/jobs?instance_uuid={one.guest.uuid}"
        jobs = requests.get(query, headers=ADMIN, timeout=10).json()["jobs"]
        assert len(jobs) == 1
        image = one.image()
        assert image is not None
        assert image["os_hash_value"] == job["sha512"]


@contextlib.contextmanager
def alarm(node: RabbitMq, command: str, raised: str, cleared: str) -> Iterator[None]:
    """Have the node run short of memory or disk: that stops every publisher of the cluster."""
    node.control(command, raised)
    try:
        wait_for(lambda: _is_alarmed(node), "the alarm", 30)
        yield
    finally:
        node.control(command, cleared)
        wait_for(lambda: not _is_alarmed(node), "the end of the alarm", 30)


def _is_alarmed(node: RabbitMq) -> bool:
    return bool(json.loads(node.control("status", "--formatter", "json"))["alarms"])


def test_a_broker_that_takes_nothing_holds_up_no_request_and_the_job_runs_when_it_does(
    cloud: Cloud, cluster: RabbitMqCluster, new_guest: Callable[..., Guest]
) -> None:
    guest = new_guest(start=False)
    with alarm(cluster.alive(), "set_vm_memory_high_watermark", "0.0000001", "0.4"):
        began = time.monotonic()
        asked = ask(cloud, guest)
        assert time.monotonic() - began < _ANSWER_S
        assert asked.job()["state"] == "pending"
    job = asked.ended()
    assert job["state"] == "done", job["reason"]


def test_a_job_that_ends_while_the_broker_takes_nothing_is_told_later_and_the_check_says_why(
    cloud: Cloud,
    cluster: RabbitMqCluster,
    new_guest: Callable[..., Guest],
    meddler: Meddler,
) -> None:
    guest = new_guest(start=False)
    meddler.flows.clear()
    asked = ask(cloud, guest)
    wait_for(lambda: asked.job()["step"] == "stream", "the upload")
    with alarm(cluster.alive(), "set_disk_free_limit", "1000000GB", "50MB"):
        meddler.behave()
        wait_for(lambda: (asked.image() or {}).get("status") == "active", "the whole image")
        wait_for(lambda: cloud.get("/healthcheck")["backends"]["broker"] != "ok", "the alarm")
        with pytest.raises(subprocess.CalledProcessError) as refused:
            cloud.manage("broker", "check")
        assert "NO: an alarm" in refused.value.stdout
        assert asked.job()["finished_at"] is None, "nobody can have told"
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    wait_for(lambda: cloud.get("/healthcheck")["backends"]["broker"] == "ok", "health", 30)
    assert cloud.manage("broker", "check").stdout.rstrip().endswith("Healthy")
