# SPDX-License-Identifier: Apache-2.0
"""What is said to Glance, read off the wire of one that the test plays."""

from __future__ import annotations

import json
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from keystoneauth1 import noauth, session

from common.glance import GlanceSettings, ImageService

VISIBLE, HIDDEN = (str(uuid.UUID(int=number)) for number in (1, 2))


class PlayedGlance(BaseHTTPRequestHandler):
    """Keeps what is created; lists one image that is visible and one that is hidden."""

    server: Server

    def do_POST(self) -> None:  # the standard library's
        """Create an image."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.created.append((dict(self.headers), body))
        self._answer(201, {**body, "status": "queued"})

    def do_GET(self) -> None:  # the standard library's
        """Show the schema or list images."""
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/v2/schemas/image":
            self._answer(200, {"name": "image", "properties": {}, "additionalProperties": True})
            return
        query = urllib.parse.parse_qs(url.query)
        hidden = query.get("os_hidden", ["false"])[0].lower() == "true"
        self.server.asked.append(query)
        image = {"id": HIDDEN if hidden else VISIBLE, "status": "active", "name": "n"}
        self._answer(200, {"images": [image]})

    def do_PATCH(self) -> None:  # the standard library's
        """Change an image."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.patched.append((dict(self.headers), body))
        self._answer(200, {"id": VISIBLE, "status": "queued"})

    def do_PUT(self) -> None:  # the standard library's
        """Take data, with its length or in chunks."""
        length = self.headers.get("Content-Length")
        data = self.rfile.read(int(length)) if length else b"".join(self._chunks())
        self.server.uploaded.append((dict(self.headers), data))
        self.send_response(204)
        self.end_headers()

    def _chunks(self) -> Iterator[bytes]:
        while length := int(self.rfile.readline(), 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """PlayedGlance's server."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PlayedGlance)
        self.created: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.asked: list[dict[str, list[str]]] = []
        self.patched: list[tuple[dict[str, str], list[dict[str, Any]]]] = []
        self.uploaded: list[tuple[dict[str, str], bytes]] = []


@pytest.fixture
def glance() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def service_of(glance: Server, **settings: Any) -> ImageService:
    url = f"http://127.0.0.1:{glance.server_address[1]}"
    own = session.Session(auth=noauth.NoAuth(endpoint=url))
    return ImageService(
        GlanceSettings(session=own, endpoint_override=url, num_retries=0, **settings)
    )


@pytest.fixture
def images(glance: Server) -> ImageService:
    return service_of(glance)


class Buffers:
    """A body of every kind of buffer that the agent sends."""

    parts = (b"bytes", bytearray(b"bytearray"), memoryview(b"view"))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[bytes | bytearray | memoryview]:
        return iter(self.parts)


@pytest.mark.parametrize("chunked", [True, False])
def test_data_goes_in_chunks_or_with_its_length_and_its_size_beside_it(
    glance: Server, chunked: bool
) -> None:
    service_of(glance, chunked_upload=chunked).upload(VISIBLE, Buffers())
    ((headers, data),) = glance.uploaded
    assert data == b"bytesbytearrayview"
    assert headers["x-openstack-image-size"] == str(len(data))
    assert headers.get("Transfer-Encoding") == ("chunked" if chunked else None)
    assert headers.get("Content-Length") == (None if chunked else str(len(data)))


def test_hidden_images_are_found_too(glance: Server, images: ImageService) -> None:
    """Increments are hidden, and Glance leaves those out of a list."""
    found = images.made_by("stillframe_job_id", "j")
    assert {image.id for image in found} == {VISIBLE, HIDDEN}
    assert all(query["stillframe_job_id"] == ["j"] for query in glance.asked)


@pytest.mark.parametrize("key", ["backend", "image_id", "import", "model", "a b: c.d"])
def test_whatever_a_property_is_called_it_arrives(
    glance: Server, images: ImageService, key: str
) -> None:
    """glanceclient takes one named `backend` for the name of a store, in a header."""
    image = images.create(VISIBLE, {"name": "n", "min_disk": 2, key: "value"})
    ((headers, body),) = glance.created
    assert body == {"id": VISIBLE, "name": "n", "min_disk": 2, key: "value"}
    assert image.properties == {key: "value"}
    assert "x-image-meta-store" not in {name.lower() for name in headers}
    assert headers["Content-Type"] == "application/json"


def test_a_change_is_one_request_and_leaves_the_rest_alone(
    glance: Server, images: ImageService
) -> None:
    images.update(VISIBLE, {"disk_format": "qcow2", "os_hidden": True, "a/b~c": "value"})
    ((headers, patch),) = glance.patched
    assert headers["Content-Type"] == "application/openstack-images-v2.1-json-patch"
    assert patch == [
        {"op": "add", "path": "/disk_format", "value": "qcow2"},
        {"op": "add", "path": "/os_hidden", "value": True},
        {"op": "add", "path": "/a~1b~0c", "value": "value"},
    ]
    assert glance.asked == [], "nothing is looked up first"
