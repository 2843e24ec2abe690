# SPDX-License-Identifier: Apache-2.0
"""What no honest client sends, to a real process: a 4xx, and its memory stays as it is."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path

import pytest
import requests

from api_service.store.engine import Database
from tests.api.test_two_processes import START_S, Api
from tools.stack.process import free_port

_MIB = 1 << 20
_PIECE = b"x" * 65_536
_HEAD = b"Host: localhost\r\nX-Auth-Token: demo:p-demo\r\nContent-Type: application/json\r\n"
_ACTION = b"POST /v2.1/servers/6793b7bd-1b34-4c49-86aa-64bdf46b5546/action HTTP/1.1\r\n"
#: A body of 100 MB that was kept would be seen, one that was looked at piece by piece not.
GROWTH_MAX_BYTES = 16 * _MIB


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A process that answers; no broker and no Glance."""
    here = tmp_path_factory.mktemp("hostile")
    database = Database(f"sqlite:///{here}/api.sqlite")
    database.sync()
    database.engine.dispose()
    nobody = f"http://127.0.0.1:{free_port()}"
    api = Api(here / "api", database=f"sqlite:///{here}/api.sqlite", glance=nobody)
    api.start()
    try:
        api.process.wait_until(api.answers, START_S)
        yield api
    finally:
        api.process.kill()


def memory_of(api: Api) -> tuple[int, int]:
    """Return what a process has in memory, and the most that it ever had, in bytes."""
    text = Path(f"/proc/{api.process.pid}/status").read_text()
    now, most = (re.search(rf"{name}:\s+(\d+) kB", text) for name in ("VmRSS", "VmHWM"))
    assert now
    assert most
    return int(now[1]) * 1024, int(most[1]) * 1024


def send(api: Api, pieces: Iterable[bytes]) -> str:
    """Send that as far as it is taken; return what comes back, nothing if it was cut off."""
    port = int(api.url.rpartition(":")[2])
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65_536):
                received += chunk
    return received.decode()


def status(reply: str) -> int:
    """Return the only status of a reply; 499 where the connection was cut off instead."""
    found = re.findall(r"HTTP/1\.1 (\d+) ", reply)
    assert len(found) <= 1, reply
    return int(found[0]) if found else 499


def body_of(size: int, head: bytes) -> Iterator[bytes]:
    yield head
    yield from repeat(_PIECE, size // len(_PIECE))


HUGE = 100 * _MIB
FLOODS: dict[str, tuple[bytes, int]] = {
    "a body of 100 MB": (_ACTION + _HEAD + f"Content-Length: {HUGE}\r\n\r\n".encode(), HUGE),
    "chunks": (
        _ACTION + _HEAD + f"Transfer-Encoding: chunked\r\n\r\n{HUGE:x}\r\n".encode(),
        HUGE,
    ),
    "a header of 100 MB": (_ACTION + _HEAD + b"X-Long: ", HUGE),
    "a URL of 100 MB": (b"GET /v1/jobs?", HUGE),
    "no request at all": (b"", HUGE),
}


def test_what_is_too_much_is_refused_and_not_kept(api: Api) -> None:
    for _ in range(3):
        assert requests.get(f"{api.url}/v1", timeout=30).status_code == 200
    before, _ = memory_of(api)
    for name, (head, size) in FLOODS.items():
        assert 400 <= status(send(api, body_of(size, head))) < 500, name
    headers = (f"X-{number}: {number}\r\n".encode() for number in range(500_000))
    assert 400 <= status(send(api, [_ACTION, _HEAD, *headers, b"\r\n"])) < 500
    _, most = memory_of(api)
    assert most - before < GROWTH_MAX_BYTES
    assert requests.get(f"{api.url}/v1", timeout=30).status_code == 200


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET /v1/jobs?marker=" + b"a" * 40_000 + b" HTTP/1.1\r\n" + _HEAD + b"\r\n", 414),
        (b"GET /v2.1/servers/" + b"a" * 20_000 + b" HTTP/1.1\r\n" + _HEAD + b"\r\n", 404),
        (b"GET /v1/jobs HTTP/1.1\r\n" + _HEAD + b"X-Long: " + b"a" * 40_000 + b"\r\n\r\n", 413),
        (b"GET /v1/jobs HTTP/1.1\r\n" + _HEAD + b"X-A: b\r\n" * 5_000 + b"\r\n", 413),
        (b"GET /v1/jobs?state=%ff%fe HTTP/1.1\r\n" + _HEAD + b"\r\n", 400),
        (b"GET /v1/jobs?host=%00 HTTP/1.1\r\n" + _HEAD + b"\r\n", 400),
        (b"GET /v1/jobs/%ff%fe%00 HTTP/1.1\r\n" + _HEAD + b"\r\n", 404),
        (b"GET /v2.1/servers/%ed%a0%80 HTTP/1.1\r\n" + _HEAD + b"\r\n", 404),
        (b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-Auth-Token: \xff\xfe\x01:p\r\n\r\n", 401),
        (b"GET /v1/jobs HTTP/1.1\r\n" + _HEAD + b"no colon\r\n\r\n", 400),
        (b"\xff\xfe\x00 / HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/jobs HTTP/9.9\r\n" + _HEAD + b"\r\n", 505),
    ],
    ids=lambda value: value[:30].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_what_cannot_be_understood_is_refused(api: Api, request_: bytes, expected: int) -> None:
    assert status(send(api, [request_])) == expected
