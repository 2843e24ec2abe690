# SPDX-License-Identifier: Apache-2.0
"""A broker that is away holds up neither the start nor the end of a daemon."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from common import rpc
from common.errors import BrokerUnavailable

PROMPT_S = 1.0


class Server:
    """oslo.messaging's server, as far as a service uses it."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.calls: list[str] = []
        self.stopped = threading.Event()
        self._hangs = hangs

    def start(self) -> None:
        if self._hangs:
            threading.Event().wait()  # as oslo.messaging does while it cannot get in
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")
        self.stopped.set()

    def wait(self, timeout: float) -> None:
        self.calls.append("wait")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_AGAIN_S", 0.01)
    monkeypatch.setattr(rpc, "_START_PATIENCE_S", 0.2)


def says(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == level]


def soon() -> float:
    return time.monotonic() + 30


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_with_a_broker_it_consumes_when_started(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = Server()
    service = rpc.RpcService(lambda: server)
    service.start()
    assert server.calls == ["start"]
    service.stop(soon())
    assert server.calls == ["start", "stop", "wait"]
    assert caplog.messages == []


def test_it_waits_for_the_broker_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    is_there = threading.Event()
    tries: list[float] = []
    server = Server()

    def require_broker() -> None:
        tries.append(time.monotonic())
        if not is_there.is_set():
            raise BrokerUnavailable("no broker at rabbit1:5672: refused")

    service = rpc.RpcService(lambda: server, require_broker)
    service.start()
    eventually(lambda: len(tries) > 2)
    assert server.calls == []
    is_there.set()
    eventually(lambda: bool(says(caplog, logging.INFO)))
    assert server.calls == ["start"]
    (warning,) = says(caplog, logging.WARNING)
    assert "rabbit1:5672" in warning
    assert len(says(caplog, logging.INFO)) == 1
    service.stop(soon())


def test_a_server_that_failed_is_replaced() -> None:
    class Refused(Server):
        def start(self) -> None:
            raise ConnectionResetError("the broker went away")

    servers = [Refused(), Refused(), Server()]
    made = iter(servers)
    service = rpc.RpcService(lambda: next(made))
    service.start()
    eventually(lambda: servers[-1].calls == ["start"])
    service.stop(soon())


def test_a_start_that_never_returns_holds_up_neither_start_nor_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(hangs=True)
    service = rpc.RpcService(lambda: server)
    began = time.monotonic()
    service.start()
    service.stop(soon())
    assert time.monotonic() - began < PROMPT_S
    assert len(says(caplog, logging.WARNING)) == 1
    assert server.calls == []


def test_a_server_that_starts_after_the_stop_is_stopped() -> None:
    stopped, starting = threading.Event(), threading.Event()

    class Late(Server):
        def start(self) -> None:
            starting.set()
            stopped.wait(10)

    server = Late()
    service = rpc.RpcService(lambda: server)
    service.start()
    assert starting.wait(10)
    service.stop(soon())
    stopped.set()
    assert server.stopped.wait(10)


class Sender:
    """oslo.messaging's client; raises what it is told to."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.sent: list[str] = []

    def cast(self, _context: object, method: str) -> None:
        if self.failure:
            raise self.failure
        self.sent.append(method)

    call = cast


def test_a_client_in_doubt_looks_for_the_broker_before_it_sends() -> None:
    looks: list[bool] = []
    sender = Sender()
    client = rpc.Client(sender, "topic", lambda: looks.append(True), 1.0)
    client.cast(None, "one")  # type: ignore[arg-type]
    client.cast(None, "two")  # type: ignore[arg-type]
    assert (sender.sent, len(looks)) == (["one", "two"], 1)
    client.call(None, "three")  # type: ignore[arg-type]
    assert len(looks) == 2
    sender.failure = rpc.OperationalError("connection refused")
    with pytest.raises(BrokerUnavailable):
        client.cast(None, "lost")  # type: ignore[arg-type]
    sender.failure = None
    client.cast(None, "four")  # type: ignore[arg-type]
    assert len(looks) == 3
