# SPDX-License-Identifier: Apache-2.0
"""Takes an NBD server's replies as they come, so that no slow consumer keeps QEMU waiting.

Used by `nbd.NbdClient.read_in_order`, which sends the requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple, Self


class Read(NamedTuple):
    """A read in flight and the buffer that it fills."""

    cookie: int
    offset: int
    buffer: bytearray


class Receiver:
    """Runs `receive` in a thread of its own while there are reads in flight.

    `receive` takes one reply and returns the cookie of a read that it completed;
    `abort` makes it fail at once.

    As long as a reply of QEMU's lies unread, it gets on with nothing that has to
    drain its disks (a pause, the end of the job), and the guest stands still
    meanwhile. So no consumer, however slow, may keep replies waiting.
    """

    def __init__(
        self, receive: Callable[[Mapping[int, Read]], int | None], abort: Callable[[], None]
    ) -> None:
        self._receive = receive
        self._abort = abort
        self._in_flight: dict[int, Read] = {}
        self._error: BaseException | None = None
        self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="nbd-receive", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._over = True
            is_abandoned = bool(self._in_flight)
            self._changed.notify_all()
        if is_abandoned:
            self._abort()
        self._thread.join()

    def expect(self, read: Read) -> None:
        """Take a read whose request is about to be sent."""
        with self._changed:
            self._in_flight[read.cookie] = read
            self._changed.notify_all()

    def wait_for(self, read: Read) -> None:
        """Wait until a read's buffer is full; raise what receiving raised."""
        with self._changed:
            while read.cookie in self._in_flight:
                if self._error is not None:
                    raise self._error
                self._changed.wait()

    def _run(self) -> None:
        try:
            while self._something_comes():
                cookie = self._receive(self._in_flight)
                if cookie is not None:
                    with self._changed:
                        del self._in_flight[cookie]
                        self._changed.notify_all()
        except BaseException as error:  # it belongs to the reader, whatever it is
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _something_comes(self) -> bool:
        with self._changed:
            while not self._in_flight and not self._over:
                self._changed.wait()
            return bool(self._in_flight)
