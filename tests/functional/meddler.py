# SPDX-License-Identifier: Apache-2.0
"""Stands between the daemons and Glance and does to their requests what networks do.

An HTTP proxy in the test's own process: by default it passes everything on. A
test sets one of its attributes to break uploads off, slow them down, keep them
waiting, lie about the hash or lose the image.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

_CHUNK = 1 << 16
_TIMEOUT_S = 120
_NO_CONTENT = 204
_NOT_PASSED_ON = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


class Meddler:
    """The proxy; `with Meddler(port_of_glance) as meddler`."""

    def __init__(self, port: int) -> None:
        meddler = self

        class Handler(_Handler):
            owner = meddler
            backend_port = port

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.uploads = 0
        #: Uploads wait here, neither read nor answered, while it is cleared.
        self.flows = threading.Event()
        self.behave()

    def behave(self) -> None:
        """Pass everything on, from now on."""
        #: Break an upload off after so many bytes; the number of times that this is done.
        self.cut_after_bytes: int | None = None
        self.cuts = 0
        #: Wait so long after each 64 KiB.
        self.delay_s = 0.0
        self.flows.set()
        #: Of so many images, the first ones asked about with a hash, another hash is told.
        self.wrong_hashes = 0
        self._lied_about: set[str] = set()
        #: Images are deleted as soon as they have arrived.
        self.loses_images = False

    def lies_about(self, image_id: str) -> bool:
        """Tell whether another hash is told of an image; the same to everybody who asks."""
        if len(self._lied_about) < self.wrong_hashes:
            self._lied_about.add(image_id)
        return image_id in self._lied_about

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flows.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Meddler
    backend_port: int
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        """Pass a request on and its answer back, or don't."""
        backend = http.client.HTTPConnection("127.0.0.1", self.backend_port, timeout=_TIMEOUT_S)
        try:
            if self.command == "PUT" and self.path.endswith("/file"):
                self._upload(backend)
            else:
                length = int(self.headers.get("Content-Length") or 0)
                backend.request(self.command, self.path, self.rfile.read(length), self._headers())
                self._answer(backend.getresponse())
        except (OSError, ValueError, http.client.HTTPException):
            self.close_connection = True
        finally:
            backend.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any

    def log_message(self, format: str, *_: object) -> None:
        """Say nothing."""

    def _headers(self) -> dict[str, str]:
        return {key: value for key, value in self.headers.items() if key.lower() != "connection"}

    def _upload(self, backend: http.client.HTTPConnection) -> None:
        owner = self.owner
        owner.uploads += 1
        cut = owner.cut_after_bytes if owner.cuts > 0 else None
        owner.cuts -= cut is not None
        backend.putrequest("PUT", self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self._headers().items():
            backend.putheader(name, value)
        backend.endheaders()
        done = 0
        for chunk in self._chunks():
            done += len(chunk)
            backend.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            time.sleep(owner.delay_s)
            if cut is not None and done >= cut:
                raise OSError("cut, as told")
        backend.send(b"0\r\n\r\n")
        answer = backend.getresponse()
        if owner.loses_images and answer.status == _NO_CONTENT:
            answer.read()
            backend.close()  # it is opened again
            backend.request("DELETE", self.path.removesuffix("/file"))
            backend.getresponse().read()
            self.send_response(_NO_CONTENT)
            self.end_headers()
            return
        self._answer(answer)

    def _chunks(self) -> Iterator[bytes]:
        """Yield the body of a chunked request in pieces of 64 KiB at most."""
        while left := int(self.rfile.readline(), 16):
            while left:
                self.owner.flows.wait()
                data = self.rfile.read(min(_CHUNK, left))
                if not data:
                    raise OSError("the client went away")
                left -= len(data)
                yield data
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, answer: http.client.HTTPResponse) -> None:
        body = self._meddled(answer.read())
        self.send_response(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _NOT_PASSED_ON:
                self.send_header(name, value)
        if answer.status != _NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _meddled(self, body: bytes) -> bytes:
        asked = re.fullmatch(r"/v2/images/([0-9a-f-]+)", self.path)
        if not self.owner.wrong_hashes or self.command != "GET" or not asked:
            return body
        image: dict[str, Any] = json.loads(body)
        if not image.get("os_hash_value") or not self.owner.lies_about(asked[1]):
            return body
        return json.dumps({**image, "os_hash_value": "0" * 128}).encode()
