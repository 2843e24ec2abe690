# SPDX-License-Identifier: Apache-2.0
"""The API's benchmark: what its clients measure, and the figures made of that."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from tools.bench import api, load
from tools.bench.load import Request

TIMES_MS = {"bare": 1.0, "GET server": 4.0, "list 100 of 100": 10.0, "list 100 of 10000": 11.0}


class Answers:
    """Answers whatever comes, one connection in a thread; closes each `closes_after` replies."""

    def __init__(self, closes_after: int) -> None:
        self._closes_after = closes_after
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.seen: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            for number in range(1, self._closes_after + 1):
                asked = connection.recv(65_536)
                if not asked:
                    return
                self.seen.append(asked)
                closing = b"Connection: close\r\n" if number == self._closes_after else b""
                status = b"404 Not Found" if b"/missing" in asked else b"200 OK"
                body = b"x" * 100_000
                connection.sendall(
                    b"HTTP/1.1 " + status + b"\r\nContent-Length: 100000\r\n" + closing + b"\r\n"
                )
                connection.sendall(body)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def server() -> Iterator[Answers]:
    answers = Answers(closes_after=3)
    yield answers
    answers.close()


def test_each_client_asks_for_the_given_time_also_where_connections_are_closed(
    server: Answers,
) -> None:
    took = load.run(server.port, [Request(method="GET", path="/")], clients=2, seconds=0.3)
    assert len(took) == len(server.seen) > 6
    assert all(0 < one < 1 for one in took)


def test_what_may_be_asked_once_is_asked_once(server: Answers) -> None:
    asked = [Request(method="GET", path=f"/{number}") for number in range(10)]
    assert len(load.run(server.port, asked, clients=3, seconds=5)) == 10
    assert len(set(server.seen)) == 10


def test_another_status_than_the_rows_is_no_figure(server: Answers) -> None:
    with pytest.raises(load.UnexpectedReply, match="not 200"):
        load.run(server.port, [Request(method="GET", path="/missing")], clients=2, seconds=1)


def test_a_row_has_the_rounds_median_and_every_requests_times() -> None:
    row = api.figures("GET server", 20, [[0.010] * 60, [0.020] * 39 + [0.500], [0.040] * 10])
    assert row == {
        "request": "GET server",
        "clients": 20,
        "rps": 625.0,
        "p50_ms": 10.0,
        "p99_ms": 40.0,
    }


def test_the_ratios_are_medians_of_each_rounds() -> None:
    took = {
        (name, clients): [[ms / 1000], [ms / 500], [ms / 250]]
        for name, ms in TIMES_MS.items()
        for clients in (1, 20)
    }
    ratios = api.ratios(took)
    assert ratios == {"get_vs_bare": 0.25, "page_10000_vs_100": 1.1}
    found = {"rows": [api.figures("bare", 1, [[0.1]])], "ratios": ratios}
    assert json.loads(json.dumps(found)) == found
    assert "get_vs_bare" in api.table(found)
