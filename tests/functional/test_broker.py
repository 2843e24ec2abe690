# SPDX-License-Identifier: Apache-2.0
"""The broker check and RPC on a real RabbitMQ: in a container where an engine answers, and bare."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import broker
from common.errors import BrokerUnavailable
from tests.functional.conftest import python
from tests.unit.common.test_broker import self_signed
from tools.stack.container import ContainerBroker, usable_image
from tools.stack.prepare import ROOT, alone
from tools.stack.process import free_port, listens
from tools.stack.rabbitmq import RabbitMq


@pytest.fixture(scope="module", params=["process", "container"])
def transport_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A RabbitMQ of each kind; the test's id says which one it used."""
    if request.param == "container":
        with alone():
            image = usable_image()
        if image is None:
            if os.environ.get("CI"):
                pytest.fail("CI must have a Docker engine and a RabbitMQ image (tools/dockerd)")
            pytest.skip("no Docker engine with a RabbitMQ image answers here")
        with ContainerBroker(image) as container:
            yield container.transport_url
        return
    yield request.getfixturevalue("cloud").rabbitmq.transport_url


def test_a_working_broker_is_told_with_its_version(transport_url: str) -> None:
    report = broker.check(transport_url, [])
    assert report.server == "RabbitMQ"
    assert report.may_declare
    assert report.healthy


def test_a_queue_without_a_consumer_is_told_from_none(transport_url: str) -> None:
    name = f"test-{uuid.uuid4()}"
    with broker._connected(broker.kombu_urls(transport_url), 5) as connection:
        channel = connection.channel()
        channel.queue_declare(queue=name, auto_delete=False)
        report = broker.check(transport_url, [name, f"{name}-missing"])
        channel.queue_delete(queue=name)
    there, missing = report.queues
    assert (there.depth, there.consumers) == (0, 0)
    assert (missing.depth, missing.consumers) == (None, None)
    assert not report.healthy


def test_a_wrong_password_is_told_as_such(transport_url: str) -> None:
    with pytest.raises(BrokerUnavailable, match="refuses") as raised:
        broker.check(transport_url.replace("guest:guest", "guest:wrong"), [])
    assert "wrong" not in str(raised.value)


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A RabbitMQ that speaks TLS on a port of its own; that port's URL, and the CA's file."""
    directory = tmp_path_factory.mktemp("rabbitmq-tls")
    certificate, port = self_signed(directory), free_port()
    (directory / "conf.d").mkdir()
    (directory / "conf.d" / "tls.conf").write_text(
        f"listeners.ssl.1 = 127.0.0.1:{port}\n"
        f"ssl_options.certfile = {certificate}\n"
        f"ssl_options.keyfile = {certificate.with_name('key.pem')}\n"
        "ssl_options.verify = verify_none\n"
    )
    server = RabbitMq(directory)
    try:
        server.start()
        # Its listeners open one after the other, and `start` waits for the plain one.
        server.process.wait_until(lambda: listens(port), 30)
        yield f"rabbit://guest:guest@localhost:{port}/", certificate
    finally:
        server.stop()


def test_a_broker_behind_tls_is_reached_as_the_daemons_reach_it(
    tls_broker: tuple[str, Path],
) -> None:
    url, certificate = tls_broker
    options = {"ssl": True, "ssl_ca_file": str(certificate)}
    assert broker.check(url, [], options=options).healthy
    with pytest.raises(BrokerUnavailable):
        broker.check(url, [], timeout_s=2)


CHECK = """
import sys
from api_service.health import check_broker
from common import conf, rpc
settings = conf.load(["--config-file", sys.argv[1]], "test")
rpc.register_options(settings)
print(check_broker(settings, []).server)
"""


def test_the_check_finds_the_options_of_tls_where_no_transport_was_made(
    tls_broker: tuple[str, Path], tmp_path: Path
) -> None:
    url, certificate = tls_broker
    config = tmp_path / "stillframe.conf"
    config.write_text(
        f"[DEFAULT]\ntransport_url = {url}\n"
        f"[oslo_messaging_rabbit]\nssl = true\nssl_ca_file = {certificate}\n"
    )
    done = subprocess.run(
        [python(), "-c", CHECK, str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "RabbitMQ", done.stderr


CAST_TO_NOBODY = """
import sys
from common import conf, context, rpc
from common.errors import AgentUnavailable
settings = conf.load(["--config-file", sys.argv[1]], "test")
client = rpc.Transport(settings).client(topic="stillframe-compute", version="1.0", timeout_s=5)
try:
    client.cast(context.new(), "snapshot_instance", host="never-started")
except AgentUnavailable:
    print("told")
"""


def test_a_cast_to_an_agent_that_never_started_is_not_lost_silently(
    transport_url: str, tmp_path: Path
) -> None:
    """In a process of its own: oslo.messaging knows one configuration only."""
    config = tmp_path / "stillframe.conf"
    config.write_text(
        f"[DEFAULT]\ntransport_url = {transport_url}\n"
        "[oslo_messaging_rabbit]\nrabbit_quorum_queue = true\n"
    )
    done = subprocess.run(
        [python(), "-c", CAST_TO_NOBODY, str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "told", done.stderr
