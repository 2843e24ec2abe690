# SPDX-License-Identifier: Apache-2.0
"""Both daemons without a broker: they start, serve, are told to stop, and consume when it comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from api_service.agents import Agents
from api_service.status import StatusEndpoint
from api_service.store.engine import Database
from api_service.store.inventory import Inventory
from api_service.store.ledger import Ledger
from common import broker, context
from common.messages import API_TOPIC
from tests.api import agents as agent_says
from tests.functional.conftest import CACHE
from tests.functional.snapshots import wait_for
from tools.stack.glance import Glance
from tools.stack.libvirtd import Libvirtd
from tools.stack.process import Process, free_port
from tools.stack.rabbitmq import RabbitMq

START_S = 20.0
STOP_S = 10.0
ACCEPTED = 202
WHO = {"X-Auth-Token": f"{agent_says.USER}:{agent_says.PROJECT}"}

CONFIG = """\
[DEFAULT]
transport_url = {transport_url}
state_path = {here}/state
host = nowhere
[api]
auth_strategy = noauth
bind_port = {port}
dispatch_interval = 1
[libvirt]
connection_uri = {libvirt}
[glance]
endpoint_override = {glance}
[spawn]
instances_directory = {here}/instances
[capture]
scratch_directory = {here}/scratch
socket_directory = {here}/run
"""


@pytest.fixture
def rabbitmq(tmp_path: Path) -> Iterator[RabbitMq]:
    """A broker that does not run yet; its port is known."""
    server = RabbitMq(tmp_path / "rabbitmq")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def glance(tmp_path_factory: pytest.TempPathFactory, glance_venv: Path) -> Iterator[Glance]:
    server = Glance(tmp_path_factory.mktemp("glance"), glance_venv)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def libvirtd(tmp_path: Path) -> Iterator[Libvirtd]:
    """A libvirtd that does not run yet."""
    server = Libvirtd(tmp_path / "libvirt", CACHE)
    yield server
    server.stop()


@pytest.fixture
def url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def start(
    tmp_path: Path, url: str, rabbitmq: RabbitMq, glance: Glance, libvirtd: Libvirtd
) -> Iterator[Callable[[str], Process]]:
    """Start a daemon of this name; it is stopped afterwards."""
    config = tmp_path / "stillframe.conf"
    config.write_text(
        CONFIG.format(
            transport_url=rabbitmq.transport_url,
            here=tmp_path,
            port=url.rpartition(":")[2],
            glance=glance.endpoint,
            libvirt=libvirtd.uri,
        )
    )
    started: list[Process] = []

    def begin(name: str) -> Process:
        process = Process(name, tmp_path)
        started.append(process)
        process.start([str(Path(sys.executable).with_name(name)), "--config-file", str(config)])
        return process

    yield begin
    for process in started:
        process.stop()


@pytest.fixture
def api(tmp_path: Path, url: str, start: Callable[[str], Process]) -> Process:
    """stillframe-api, serving; it knows one instance, whose agent it heard of just now."""
    (tmp_path / "state").mkdir()
    database = Database(f"sqlite:///{tmp_path}/state/api.sqlite")
    database.sync()
    inventory = Inventory(database)
    status = StatusEndpoint(Ledger(database), inventory, Agents(inventory, 60))
    status.host_report(context.new(), report=agent_says.heartbeat(agent_says.instance()))
    database.engine.dispose()
    process = start("stillframe-api")
    process.wait_until(lambda: answers(url), START_S)
    return process


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == requests.codes.ok
    except requests.ConnectionError:
        return False


def assert_stops_soon(process: Process) -> None:
    began = time.monotonic()
    process.stop()
    assert time.monotonic() - began < STOP_S, process.tail()


def ask(url: str) -> requests.Response:
    (server,) = requests.get(f"{url}/v2.1/servers", headers=WHO, timeout=10).json()["servers"]
    action = f"{url}/v2.1/servers/{server['id']}/action"
    return requests.post(action, json={"createImage": {"name": "x"}}, headers=WHO, timeout=10)


def test_the_api_serves_takes_a_job_and_stops(api: Process, url: str) -> None:
    answer = ask(url)
    assert answer.status_code == ACCEPTED, answer.text
    (job,) = requests.get(f"{url}/v1/jobs", headers=WHO, timeout=10).json()["jobs"]
    assert job["state"] == "pending"
    assert api.tail(1000).count("waiting for the broker") == 1
    assert_stops_soon(api)
    assert "stillframe-api has stopped" in api.tail(1000)


def test_the_api_consumes_when_the_broker_comes(api: Process, url: str, rabbitmq: RabbitMq) -> None:
    rabbitmq.start()
    wait_for(
        lambda: broker.check(rabbitmq.transport_url, [API_TOPIC]).healthy,
        "the API to consume its queue",
        30,
    )
    wait_for(lambda: "messages are consumed now" in api.tail(1000), "the log to say so", 10)
    assert_stops_soon(api)


def test_the_agent_starts_and_stops(start: Callable[[str], Process], libvirtd: Libvirtd) -> None:
    libvirtd.start()
    agent = start("stillframe-compute")
    agent.wait_until(lambda: "stillframe-compute is ready" in agent.tail(1000), START_S)
    wait_for(lambda: "cannot be announced" in agent.tail(1000), "it to miss the API", 10)
    assert_stops_soon(agent)
    assert "stillframe-compute has stopped" in agent.tail(1000)
