# SPDX-License-Identifier: Apache-2.0
"""A TCP connection that a test can cut or let hang: it lies between the daemons and RabbitMQ."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16
_CONNECT_S = 5.0
_END_S = 10.0
#: Closing ends a connection with RST and without a goodbye, as a router that has lost it does.
_RUDELY = struct.pack("ii", 1, 0)


class Wire:
    """The proxy of one port of the loopback; `with Wire(port_of_rabbitmq) as wire`."""

    def __init__(self, port: int) -> None:
        self._backend = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._is_cut = False
        #: While it is cleared, connections are accepted and nothing passes.
        self._flows = threading.Event()
        self._flows.set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def connections(self) -> int:
        """How many connections lead through it now."""
        with self._lock:
            return len(self._open) // 2

    def cut(self) -> None:
        """End every connection, and each new one at once."""
        with self._lock:
            self._is_cut = True
            ends = set(self._open)
        self._flows.set()
        for end in ends:
            _end(end)

    def hang(self) -> None:
        """Accept connections and pass nothing, in neither direction."""
        self._flows.clear()

    def mend(self) -> None:
        """Pass everything again, also what was held up."""
        with self._lock:
            self._is_cut = False
        self._flows.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A blocked accept() does not notice that its socket is closed; this it does.
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(_END_S)
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            backend = socket.create_connection(self._backend, _CONNECT_S)
        except OSError:
            _end(client)
            return
        backend.settimeout(None)
        with self._lock:
            if self._is_cut:
                _end(client)
                _end(backend)
                return
            self._open |= {client, backend}
        for source, sink in ((client, backend), (backend, client)):
            threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        """Pass what one end says to the other, until either is gone."""
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self._flows.wait()
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        _end(source)
        _end(sink)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RUDELY)
        # Wakes the thread that reads from it, too.
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
