# SPDX-License-Identifier: Apache-2.0
"""The HTTP server that we run ourselves: bodies whose end is not where they say it is."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import Iterator

import pytest
from oslo_config import cfg

from api_service.cmd import HttpServer
from common.conf import api as api_options
from common.reports import InstanceRecord
from tests.api.clouds import Cloud

_HEAD = "Host: localhost\r\nX-Auth-Token: demo:p-demo\r\nContent-Type: application/json\r\n"
#: What a smuggled request would be answered with.
_SECOND = "GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n"
TIMEOUT_S = 1


@pytest.fixture
def port(cloud: Cloud) -> Iterator[int]:
    """The port of a real server before the real application; one thread serves it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free: int = probe.getsockname()[1]
    conf = cfg.ConfigOpts()
    conf.register_opts(api_options.OPTS, group=api_options.GROUP)
    conf([], project="stillframe", default_config_files=[], default_config_dirs=[])
    conf.set_override("bind_port", free, group="api")
    conf.set_override("threads", 1, group="api")
    server = HttpServer(cloud.http.app, conf)
    server._server.timeout = TIMEOUT_S
    server.start()
    yield free
    server.stop(time.monotonic() + 5)


def talk(port: int, sent: str, *, then_close: bool = False) -> str:
    """Send that and return everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent.encode())
        if then_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65_536):
                received += chunk
        return received.decode()


def post(instance: InstanceRecord, headers: str, body: str) -> str:
    return f"POST /v2.1/servers/{instance.uuid}/action HTTP/1.1\r\n{_HEAD}{headers}\r\n{body}"


BODY = json.dumps({"createImage": {"name": "n"}})


def statuses(replies: str) -> list[str]:
    """Return the status of each reply."""
    return re.findall(r"HTTP/1\.1 (\d+) ", replies)


@pytest.mark.parametrize("then_close", [True, False], ids=["closed", "stalled"])
def test_a_body_shorter_than_its_length_is_400_and_frees_its_thread(
    cloud: Cloud,
    instance: InstanceRecord,
    port: int,
    then_close: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    replies = talk(port, post(instance, "Content-Length: 500\r\n", BODY), then_close=then_close)
    assert statuses(replies) == ["400"]
    assert "badRequest" in replies
    assert cloud.images.created == []
    assert not caplog.records
    # There is one thread: it must be free again.
    assert statuses(talk(port, _SECOND, then_close=True)) == ["200"]


@pytest.mark.parametrize(
    "headers",
    [
        "Transfer-Encoding: chunked\r\n",
        f"Transfer-Encoding: chunked\r\nContent-Length: {len(BODY)}\r\n",
    ],
)
def test_a_body_in_chunks_is_refused_and_never_taken_for_a_request(
    cloud: Cloud, instance: InstanceRecord, port: int, headers: str
) -> None:
    chunked = f"{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n"
    replies = talk(port, post(instance, headers, chunked + _SECOND))
    assert statuses(replies) == ["411"]
    assert "Content-Length" in replies
    assert cloud.images.created == []


@pytest.mark.parametrize("length", ["-5", "+5", "1_0", "five"])
def test_a_length_that_is_no_number_is_400(
    cloud: Cloud, instance: InstanceRecord, port: int, length: str
) -> None:
    replies = talk(port, post(instance, f"Content-Length: {length}\r\n", BODY + _SECOND))
    assert statuses(replies) == ["400"]
    assert cloud.images.created == []


def test_too_long_a_body_is_413_without_being_read(instance: InstanceRecord, port: int) -> None:
    replies = talk(port, post(instance, f"Content-Length: {10**12}\r\n", "x" * 200_000))
    assert statuses(replies) == ["413"]
    assert "overLimit" in replies


def test_a_body_that_nobody_read_is_not_taken_for_a_request(
    instance: InstanceRecord, port: int
) -> None:
    """Refused before its body was looked at; the connection goes on with the next request."""
    sent = post(instance, f"Content-Length: {len(BODY)}\r\n", BODY).replace("demo:p-demo", "")
    replies = talk(port, sent + _SECOND, then_close=True)
    assert statuses(replies) == ["401", "200"]


def test_an_honest_request_keeps_its_connection(
    cloud: Cloud, instance: InstanceRecord, port: int
) -> None:
    sent = post(instance, f"Content-Length: {len(BODY)}\r\n", BODY)
    assert statuses(talk(port, sent + _SECOND, then_close=True)) == ["202", "200"]
    assert len(cloud.images.created) == 1
