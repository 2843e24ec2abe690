# SPDX-License-Identifier: Apache-2.0
"""Runs an iterator of buffers in a thread of its own, a bounded number of bytes ahead.

`pump` chains two of these, so that reading, hashing and sending overlap.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Iterator

LOG = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview

#: How soon a consumer that waits notices that it shall not.
_LOOK_S = 0.2
_JOIN_TIMEOUT_S = 5.0


class Ahead:
    """Iterates `produce`'s buffers; an error raised there is raised here.

    `produce` is run, and closed when nobody takes anything any more, in the thread.
    At most `limit_bytes` (and one buffer) are ready and not yet taken. While
    it waits, `check` is called several times a second; it may raise. `end`
    must be called, whatever happens.
    """

    def __init__(
        self,
        produce: Generator[Buffer, None, None],
        *,
        limit_bytes: int,
        check: Callable[[], None],
        name: str,
    ) -> None:
        self._produce = produce
        self._limit_bytes = limit_bytes
        self._check = check
        self._ready: collections.deque[Buffer] = collections.deque()
        self._ready_bytes = 0
        self._error: BaseException | None = None
        self._finished = False
        self._abandoned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Buffer]:
        return self

    def __next__(self) -> Buffer:
        with self._changed:
            self._check()
            while not self._ready and not self._finished:
                self._changed.wait(_LOOK_S)
                self._check()
            if self._ready:
                buffer = self._ready.popleft()
                self._ready_bytes -= len(buffer)
                self._changed.notify_all()
                return buffer
        if self._error is not None:
            raise self._error
        raise StopIteration

    def abandon(self) -> None:
        """Tell the thread that nobody takes anything any more."""
        with self._changed:
            self._abandoned = True
            self._ready.clear()
            self._changed.notify_all()

    def end(self) -> None:
        """Let the thread go, whether it is through or not, and wait for it for a while."""
        self.abandon()
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            LOG.warning("Thread %s has not ended yet; it will, by its timeouts", self._thread.name)

    def _run(self) -> None:
        try:
            with contextlib.closing(self._produce) as buffers:
                for buffer in buffers:
                    if not self._put(buffer):
                        break
        except BaseException as error:  # it belongs to the consumer, whatever it is
            self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()

    def _put(self, buffer: Buffer) -> bool:
        with self._changed:
            while self._ready_bytes >= self._limit_bytes and not self._abandoned:
                self._changed.wait()
            if self._abandoned:
                return False
            self._ready.append(buffer)
            self._ready_bytes += len(buffer)
            self._changed.notify_all()
        return True
