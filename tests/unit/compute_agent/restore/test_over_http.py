# SPDX-License-Identifier: Apache-2.0
"""The wire may break, stand still or lie about lengths: the file is the image, or there is none."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from keystoneauth1 import noauth, session

from common.errors import JobCancelled
from common.flatten import UnsafeImage
from common.glance import GlanceSettings, ImageService, ImageServiceUnavailable
from compute_agent.restore import fetch
from tests.unit.compute_agent.conftest import wait_for
from tests.unit.compute_agent.restore.conftest import Prove
from tests.unit.compute_agent.restore.shelf import IMAGE, SETTINGS, SIZE, Errand, Shelf

CONTENT = os.urandom(SIZE)
STALL_S = 0.3


class Wire:
    """A server of one image's data; `behave` sends the body of each answer."""

    def __init__(self) -> None:
        self.asked = 0
        self.length_bytes = SIZE
        self.behave: Callable[[BaseHTTPRequestHandler], None] = whole
        self.is_over = threading.Event()
        #: Set when a client went away in the middle.
        self.left = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)
        self._thread.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == f"/v2/images/{IMAGE}/file"
                wire.asked += 1
                self.send_response(200)
                self.send_header("Content-Length", str(wire.length_bytes))
                self.end_headers()
                try:
                    wire.behave(self)
                except OSError:
                    wire.left.set()
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def service(self) -> ImageService:
        host, port = self._server.server_address[:2]
        endpoint = f"http://{host!s}:{port}"
        auth = noauth.NoAuth(endpoint=endpoint)
        return ImageService(
            GlanceSettings(
                session=session.Session(auth=auth),
                endpoint_override=endpoint,
                request_timeout_s=STALL_S,
            )
        )

    def end(self) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def whole(answer: BaseHTTPRequestHandler) -> None:
    answer.wfile.write(CONTENT)


def half(answer: BaseHTTPRequestHandler) -> None:
    answer.wfile.write(CONTENT[: SIZE // 2])


@pytest.fixture
def wire(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The shelf's image, its data over a real connection."""
    monkeypatch.setattr(fetch, "_BACKOFF_S", (0.0,))
    shelf.put(CONTENT, "raw")
    wire = Wire()
    monkeypatch.setattr(shelf, "download", wire.service().download)
    yield wire
    wire.end()


def still(wire: Wire) -> Callable[[BaseHTTPRequestHandler], None]:
    """Send a half, and then nothing."""

    def behave(answer: BaseHTTPRequestHandler) -> None:
        half(answer)
        wire.is_over.wait(60)

    return behave


def test_the_image_comes_whole(wire: Wire, prove: Prove) -> None:
    assert prove().path.read_bytes() == CONTENT
    assert wire.asked == 1


def test_a_connection_that_breaks_is_no_end_of_the_image(wire: Wire, prove: Prove) -> None:
    def first_half(answer: BaseHTTPRequestHandler) -> None:
        (half if wire.asked == 1 else whole)(answer)

    wire.behave = first_half
    assert prove().path.read_bytes() == CONTENT
    assert wire.asked == 2


def test_one_that_stands_still_is_given_up(wire: Wire, prove: Prove, room: Path) -> None:
    wire.behave = still(wire)
    with pytest.raises(ImageServiceUnavailable):
        prove()
    assert wire.asked == SETTINGS.retries + 1
    assert list(room.iterdir()) == []


def test_a_stop_does_not_wait_for_one_that_stands_still(
    wire: Wire, prove: Prove, errand: Errand
) -> None:
    def stop(answer: BaseHTTPRequestHandler) -> None:
        half(answer)
        errand.stopped.set()
        wire.is_over.wait(60)

    wire.behave = stop
    with pytest.raises(JobCancelled):
        prove()
    assert wire.asked == 1


def test_what_cannot_be_good_is_not_received_to_its_end(
    wire: Wire, prove: Prove, shelf: Shelf
) -> None:
    wire.length_bytes = 1 << 30
    shelf.put(CONTENT, "qcow2", size_bytes=wire.length_bytes)

    def for_ever(answer: BaseHTTPRequestHandler) -> None:
        while not wire.is_over.is_set():
            answer.wfile.write(CONTENT)

    wire.behave = for_ever
    with pytest.raises(UnsafeImage):
        prove()
    wait_for(wire.left.is_set)
