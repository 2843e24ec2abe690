# SPDX-License-Identifier: Apache-2.0
"""Moves an image from its export to whoever sends it, hashing on the way.

A reader thread keeps a bounded amount ready, so that reading and sending
overlap; hashing happens in the reader (hashlib lets other threads run). A Pump
is an HTTP body: it has the exact length, and each iteration starts at byte 0
with a fresh hash, so a broken upload is simply iterated again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from common.errors import StillframeError
from compute_agent.stream.extents import Source
from compute_agent.stream.throttle import Throttle

#: Buffers (of at most 1 MiB) that the reader may be ahead of the sender.
_AHEAD = 8
_LOOK_S = 0.2


class Layout(Protocol):
    """An image format at work: Qcow2Layout or RawLayout."""

    disk_format: str
    length_bytes: int
    data_bytes: int

    def stream(self, source: Source) -> Iterator[bytes | bytearray]:
        """Yield the whole image."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What went through: to be compared with what the receiver reports."""

    size_bytes: int
    sha512: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a pass is; `rate_bytes_s` is its mean so far."""

    bytes_done: int
    bytes_total: int
    rate_bytes_s: float

    @property
    def percent(self) -> int:
        """Share of the whole, 0 to 100."""
        return self.bytes_done * 100 // self.bytes_total if self.bytes_total else 100

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this rate; None before there is one."""
        if not self.rate_bytes_s:
            return None
        return (self.bytes_total - self.bytes_done) / self.rate_bytes_s


class Stopped(StillframeError):
    """The pass was told to stop; the one who did knows why."""

    code = "stopped"


class Pump:
    """The body of an upload. `open_source` is called anew for every pass.

    `on_progress` is called for each buffer that was handed over, in the
    sender's thread. When `stopped` is set, the pass ends with Stopped.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        layout: Layout,
        *,
        throttle: Throttle,
        stopped: threading.Event,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._open_source = open_source
        self._layout = layout
        self._throttle = throttle
        self._stopped = stopped
        self._on_progress = on_progress
        self._digest: Digest | None = None

    def __len__(self) -> int:
        """Return the exact length in bytes (requests makes it Content-Length)."""
        return self._layout.length_bytes

    def __iter__(self) -> Iterator[bytes | bytearray]:
        """Yield the whole image, from byte 0; raise Stopped or whatever reading raised."""
        self._digest = None
        began, done = time.monotonic(), 0
        reader = _Reader(self._open_source, self._layout, self._throttle, self._stopped)
        try:
            for buffer in reader.buffers():
                yield buffer
                done += len(buffer)
                rate = done / max(time.monotonic() - began, 1e-6)
                self._on_progress(
                    Progress(
                        bytes_done=done, bytes_total=self._layout.length_bytes, rate_bytes_s=rate
                    )
                )
        finally:
            reader.end()
        self._digest = Digest(size_bytes=done, sha512=reader.sha512())

    @property
    def digest(self) -> Digest:
        """What the last pass, which must have been whole, consisted of."""
        if self._digest is None:
            raise StillframeError("the image was not read to its end")
        return self._digest


class _Reader:
    """One pass's reading thread, at most _AHEAD buffers before the sender."""

    def __init__(
        self,
        open_source: Callable[[], Source],
        layout: Layout,
        throttle: Throttle,
        stopped: threading.Event,
    ) -> None:
        self._open_source = open_source
        self._layout = layout
        self._throttle = throttle
        self._stopped = stopped
        self._abandoned = threading.Event()
        self._hash = hashlib.sha512()
        self._queue: queue.Queue[bytes | bytearray | BaseException | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._run, name="stream-reader", daemon=True)
        self._thread.start()

    def buffers(self) -> Iterator[bytes | bytearray]:
        """Yield what the thread has read; errors travel from there to here."""
        while True:
            try:
                item = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                self._raise_if_stopped()
                continue
            self._raise_if_stopped()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def end(self) -> None:
        """Let the thread go, whether it is through or not."""
        self._abandoned.set()
        self._thread.join()

    def sha512(self) -> str:
        """Return the hash of all that was read, in hex."""
        return self._hash.hexdigest()

    def _raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise Stopped("the stream was told to stop")

    def _run(self) -> None:
        try:
            source = self._open_source()
            try:
                for buffer in self._layout.stream(source):
                    self._throttle.pace(len(buffer), self._stopped)
                    self._hash.update(buffer)
                    if not self._put(buffer):
                        return
            finally:
                source.close()
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: bytes | bytearray | BaseException | None) -> bool:
        """Hand over an item; False when nobody will take it any more."""
        while not self._abandoned.is_set():
            try:
                self._queue.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False
