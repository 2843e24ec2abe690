# SPDX-License-Identifier: Apache-2.0
"""From the POST to the outcome through oslo.messaging itself, with an agent played by the test.

The transport is oslo.messaging's in-memory one: real casts, calls, contexts and
serialization, no broker.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from oslo_config import cfg

from api_service.agent_client import AgentClient
from api_service.dispatcher import Dispatcher
from common import context, rpc
from common.messages import API_TOPIC, COMPUTE_TOPIC, RPC_VERSION, SnapshotRequest
from common.reports import InstanceRecord
from common.states import JobState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.memory_images import MemoryImages


class PlayedAgent:
    """Does at once what an agent does in minutes; answers `outcome` of its last job."""

    def __init__(self, transport: rpc.Transport, images: MemoryImages) -> None:
        self._api = transport.client(topic=API_TOPIC, version=RPC_VERSION, timeout_s=10)
        self._images = images
        self.request_ids: list[str] = []
        self.fails = False
        self.confirmed = threading.Event()
        self.uploading = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def snapshot_instance(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Accept, upload and report, or fail."""
        request = SnapshotRequest.from_wire(arguments)
        self.request_ids.append(caller.request_id)
        ids = (request.job_id, request.instance.uuid, request.image_id)
        self._api.cast(caller, "job_accepted", report=agent_says.accepted(*ids))
        self._api.cast(caller, "job_progress", report=agent_says.progress(request.job_id))
        self.uploading.set()
        self.go_on.wait(10)
        if self.fails:
            ending = {"state": JobState.ERROR, "reason": "the disk broke", "size_bytes": None}
        else:
            ending = {"state": JobState.DONE}
            self._images.activate(request.image_id)
        report = agent_says.finished(*ids, **ending)
        if self._api.call(caller, "job_finished", report=report)["recorded"]:
            self.confirmed.set()


@pytest.fixture
def transport() -> Iterator[rpc.Transport]:
    # The global object: oslo.messaging reads its tracing options from nowhere else.
    conf = cfg.CONF
    conf([], project="stillframe", default_config_files=[], default_config_dirs=[])
    rpc.register_options(conf)
    conf.set_override("transport_url", "fake://")
    transport = rpc.Transport(conf)
    yield transport
    transport.close()
    conf.clear_override("transport_url")
    conf.reset()


@pytest.fixture
def agent(cloud: Cloud, images: MemoryImages, transport: rpc.Transport) -> Iterator[PlayedAgent]:
    """An agent and the API's own consumer, both listening."""
    client = transport.client(topic=COMPUTE_TOPIC, version=RPC_VERSION, timeout_s=10)
    cloud.dispatcher.__init__(cloud.ledger, AgentClient(client))  # type: ignore[misc]
    played = PlayedAgent(transport, images)
    servers = [
        transport.server(
            topic=COMPUTE_TOPIC, host=agent_says.HOST, version=RPC_VERSION, endpoints=[played]
        ),
        transport.server(
            topic=API_TOPIC,
            host="api-1",
            version=RPC_VERSION,
            endpoints=[cloud.status, cloud.calls],
        ),
    ]
    for server in servers:
        server.start()
    yield played
    played.go_on.set()
    for server in servers:
        server.stop()
        server.wait()


def test_a_snapshot_goes_there_and_back(
    cloud: Cloud, instance: InstanceRecord, agent: PlayedAgent
) -> None:
    agent.go_on.clear()
    reply = cloud.snapshot(instance.uuid)
    assert agent.uploading.wait(10)
    assert agent.request_ids == [reply.headers["x-openstack-request-id"]]
    agent.go_on.set()
    assert agent.confirmed.wait(10)
    job = cloud.job_of(reply.json["image_id"])
    assert (job["state"], job["size_bytes"]) == ("done", 1000)
    assert cloud.task_state(instance.uuid) is None
    assert cloud.images.records[reply.json["image_id"]]["status"] == "active"


def test_a_failure_comes_back_with_its_reason(
    cloud: Cloud, instance: InstanceRecord, agent: PlayedAgent
) -> None:
    agent.fails = True
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    assert agent.confirmed.wait(10)
    job = cloud.job_of(image_id)
    assert (job["state"], job["reason"]) == ("error", "the disk broke")
    cloud.reaper.round()
    assert cloud.images.records == {}


def test_an_agent_announces_itself_over_the_wire(
    cloud: Cloud, agent: PlayedAgent, transport: rpc.Transport
) -> None:
    record = agent_says.instance()
    client = transport.client(topic=API_TOPIC, version=RPC_VERSION, timeout_s=10)
    client.call(context.new(), "host_report", report=agent_says.heartbeat(record))
    assert cloud.server(record.uuid)["name"] == "web"


def test_a_message_that_nobody_speaks_does_not_stop_the_consumer(
    cloud: Cloud, instance: InstanceRecord, agent: PlayedAgent, transport: rpc.Transport
) -> None:
    newer = transport.client(topic=API_TOPIC, version="2.0", timeout_s=10)
    newer.cast(context.new(), "host_report", report={})
    client = transport.client(topic=API_TOPIC, version=RPC_VERSION, timeout_s=10)
    client.cast(context.new(), "no_such_method", report={})
    client.cast(context.new(), "job_finished", report={"job_id": 7})
    client.call(context.new(), "host_report", report=agent_says.heartbeat(instance))
    assert cloud.snapshot(instance.uuid).status_code == 202
    assert agent.confirmed.wait(10)


def test_a_dispatchers_thread_starts_with_the_first_job(cloud: Cloud) -> None:
    """A forking WSGI server loads the application before it forks: no thread may exist then."""
    before = threading.active_count()
    Dispatcher(cloud.ledger, AgentClient(cloud.casts))  # type: ignore[arg-type]
    assert threading.active_count() == before


def test_another_service_calls_for_a_snapshot_and_hears_how_it_ends(
    cloud: Cloud, instance: InstanceRecord, agent: PlayedAgent, transport: rpc.Transport
) -> None:
    client = transport.client(topic=API_TOPIC, version=RPC_VERSION, timeout_s=10)
    caller = context.new(user_id="demo", project_id="p-demo", roles=["member", "reader"])
    answer = client.call(
        caller, "snapshot_instance", instance={"uuid": instance.uuid}, name="from a service"
    )
    assert agent.confirmed.wait(10)
    assert agent.request_ids == [caller.request_id]
    shown = client.call(caller, "show_job", job_id=answer["job_id"])
    assert (shown["state"], shown["progress"], shown["error"]) == ("done", 100, None)


def test_a_cast_of_nonsense_does_not_stop_the_consumer(
    cloud: Cloud, instance: InstanceRecord, agent: PlayedAgent, transport: rpc.Transport
) -> None:
    client = transport.client(topic=API_TOPIC, version=RPC_VERSION, timeout_s=10)
    for method in ("snapshot_instance", "reboot_instance", "_once", "_ledger", "target"):
        client.cast(context.new(), method, instance={"uuid": 7}, job_id=[])
    answer = client.call(context.new(), "show_job", job_id=instance.uuid)
    assert answer["error"]["code"] == "not_found"
