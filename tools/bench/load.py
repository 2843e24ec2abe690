# SPDX-License-Identifier: Apache-2.0
"""Clients that ask one thing after the other, each in a process of its own.

They do as little as a client can: one connection, requests made beforehand,
no parsing beyond the status and the length. What they cost is the same for
every row, the bare resource's too.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
import socket
import time
from collections.abc import Sequence
from threading import BrokenBarrierError
from typing import Any

_TIMEOUT_S = 60.0
_STATUS = slice(9, 12)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\A[^{]*\r\nconnection: *close", re.IGNORECASE)
#: Fork: the requests are there already, and nothing else runs in this process.
_PROCESSES = multiprocessing.get_context("fork")


class UnexpectedReply(Exception):
    """A reply has another status than the row is about; the message shows its beginning."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked, and the status that it must be answered with."""

    method: str
    path: str
    status: int = 200
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def encoded(self) -> bytes:
        """Return it as it goes over the wire."""
        length = [("Content-Length", str(len(self.body)))] if self.body else []
        lines = [f"{name}: {value}" for name, value in (*self.headers, *length)]
        head = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost", *lines]
        return ("\r\n".join(head) + "\r\n\r\n" + self.body).encode()


def run(port: int, requests: Sequence[Request], clients: int, seconds: float) -> list[float]:
    """Have so many clients ask for so long; return how long each request took, in seconds.

    Each goes round through its share of `requests`; where only one may be asked
    once (a 202), give it as many as there is time for. Raises UnexpectedReply.
    """
    told: Any = _PROCESSES.SimpleQueue()
    start = _PROCESSES.Barrier(clients)
    asked = [(one.encoded(), str(one.status).encode()) for one in requests]
    once = len(asked) > 1
    workers = [
        _PROCESSES.Process(
            target=_client,
            args=(port, asked[number::clients] if once else asked, once, seconds, start, told),
            daemon=True,
        )
        for number in range(clients)
    ]
    for worker in workers:
        worker.start()
    found = [told.get() for _ in workers]
    for worker in workers:
        worker.join(_TIMEOUT_S)
    for one in found:
        if isinstance(one, str):
            raise UnexpectedReply(one)
    return [took for one in found for took in one]


def _client(
    port: int,
    asked: Sequence[tuple[bytes, bytes]],
    once: bool,
    seconds: float,
    start: Any,
    told: Any,
) -> None:
    try:
        connection = _connect(port)
        start.wait(_TIMEOUT_S)
        told.put(_ask(connection, port, asked, once, seconds))
    except (OSError, UnexpectedReply, BrokenBarrierError) as error:
        told.put(f"{type(error).__name__}: {error}")


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _ask(
    connection: socket.socket,
    port: int,
    asked: Sequence[tuple[bytes, bytes]],
    once: bool,
    seconds: float,
) -> list[float]:
    took: list[float] = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        if once and len(took) == len(asked):
            break
        sent, status = asked[len(took) % len(asked)]
        connection.sendall(sent)
        reply = _reply(connection)
        if _CLOSES.search(reply):
            # Its time counts: a server that does so costs its clients that.
            connection.close()
            connection = _connect(port)
        took.append(time.perf_counter() - began)
        if reply[_STATUS] != status:
            raise UnexpectedReply(f"not {status.decode()}: {reply[:500]!r}")
    connection.close()
    return took


def _reply(connection: socket.socket) -> bytes:
    """Return a whole reply."""
    data = connection.recv(65_536)
    while b"\r\n\r\n" not in data and data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    missing = (int(length[1]) if length else 0) - len(body)
    parts = [data]
    while missing > 0:
        piece = connection.recv(min(missing, 1 << 20))
        if not piece:
            raise UnexpectedReply("the connection was closed in the middle")
        parts.append(piece)
        missing -= len(piece)
    return b"".join(parts)
