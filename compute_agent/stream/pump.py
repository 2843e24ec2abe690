# SPDX-License-Identifier: Apache-2.0
"""Moves an image from its export to whoever sends it, hashing on the way.

    reader thread: source → format → throttle │ hash thread: sha512 │ caller: sends

The three overlap, each a bounded number of bytes ahead of the next. A Pump is
an HTTP body: it has the exact length, and each iteration starts at byte 0 with
a connection and a hash of its own, so a broken upload is simply iterated again.
Made and sent by the job's pipeline (`upload`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol

from common.errors import JobCancelled, JobFailed
from compute_agent.disks.nbd import ALLOCATION_CONTEXT, Extent
from compute_agent.stream.ahead import Ahead, Buffer
from compute_agent.stream.extents import Source
from compute_agent.stream.progress import INTERVAL_S, Meter, OnProgress, Progress, ignore
from compute_agent.stream.throttle import Throttle, Throttles

__all__ = ["Digest", "Layout", "Paced", "Progress", "Pump", "Stopped", "UnexpectedLength"]

#: What each thread may be ahead of the next: enough to never wait for one another's
#: system calls, and little in the memory of a hypervisor.
_AHEAD_BYTES = 4 << 20


class Layout(Protocol):
    """An image laid out before its first byte is sent; it may be streamed more than once."""

    #: Glance's word for the format.
    disk_format: str
    #: Exact length of the image, in bytes.
    length_bytes: int
    #: Size of the disk that a guest sees, in bytes.
    virtual_bytes: int
    #: Bytes that are read from the source.
    data_bytes: int

    def stream(self, source: Source) -> Iterator[Buffer]:
        """Yield the whole image, reading `source` once, in order."""


class Takes(Protocol):
    """A lease of one throttle or several."""

    def take(self, count_bytes: int) -> bool:
        """Wait until so many bytes may pass; False when the job was stopped."""


class Stopped(JobCancelled):
    """The pass was told to stop; the one who did knows why."""


class UnexpectedLength(JobFailed):
    """The image came out longer or shorter than its layout had promised: a defect of ours."""

    code = "unexpected_length"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What went through: to be compared with what the receiver reports."""

    size_bytes: int
    sha512: str


class Pump:
    """The body of an upload. `open_source` is called anew for every pass.

    `on_progress` is called about every `progress_interval_s` and at the end, in
    the sender's thread. When `stopped` is set, the pass ends with Stopped
    within a second, unless the sender itself stands still.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        layout: Layout,
        *,
        throttle: Throttle | Throttles,
        stopped: threading.Event,
        on_progress: OnProgress = ignore,
        progress_interval_s: float = INTERVAL_S,
    ) -> None:
        self._open_source = open_source
        self._layout = layout
        self._throttle = throttle
        self._stopped = stopped
        self._on_progress = on_progress
        self._progress_interval_s = progress_interval_s
        self._digest: Digest | None = None
        self._pass: _Pass | None = None

    def __len__(self) -> int:
        """Return the exact length in bytes (requests makes it Content-Length)."""
        return self._layout.length_bytes

    def __iter__(self) -> Iterator[Buffer]:
        """Yield the whole image, from byte 0; raise Stopped or whatever reading raised."""
        self.end()
        self._digest = None
        meter = Meter(len(self), self._on_progress, interval_s=self._progress_interval_s)
        self._pass = one = _Pass(self._open_source, self._layout, self._throttle, self._stopped)
        done = 0
        try:
            for buffer in one.buffers():
                done += len(buffer)
                if done > len(self):
                    break
                yield buffer
                meter.add(len(buffer))
        finally:
            one.end()
        if done != len(self):
            raise UnexpectedLength(f"the image has {done} bytes where {len(self)} were promised")
        self._digest = Digest(size_bytes=done, sha512=one.sha512())

    @property
    def digest(self) -> Digest:
        """What the last pass, which must have been whole, consisted of."""
        if self._digest is None:
            raise JobFailed("the image was not read to its end")
        return self._digest

    @property
    def is_complete(self) -> bool:
        """The last pass went to its end, so there is a digest."""
        return self._digest is not None

    def end(self) -> None:
        """End a pass that nobody iterates any more (its sender failed); harmless otherwise."""
        unfinished, self._pass = self._pass, None
        if unfinished is not None:
            unfinished.end()


class _Pass:
    """The two threads of one pass."""

    def __init__(
        self,
        open_source: Callable[[], Source],
        layout: Layout,
        throttle: Throttle | Throttles,
        stopped: threading.Event,
    ) -> None:
        self._open_source = open_source
        self._layout = layout
        self._lease = throttle.lease(stopped)
        self._stopped = stopped
        self._source: Source | None = None
        self._hash = hashlib.sha512()
        self._reader = self._ahead(self._read(), "stream-read")
        self._hasher = self._ahead(self._hashed(), "stream-hash")

    def buffers(self) -> Iterator[Buffer]:
        """Return the image's buffers as they come out of the hash."""
        return iter(self._hasher)

    def sha512(self) -> str:
        """Return the hash of all that came through, in hex."""
        return self._hash.hexdigest()

    def end(self) -> None:
        """Let both threads go, waiting for neither the disk nor the throttle."""
        self._reader.abandon()
        if self._source is not None:
            self._source.abort()
        self._hasher.end()
        self._reader.end()

    def _ahead(self, produce: Generator[Buffer, None, None], name: str) -> Ahead:
        return Ahead(produce, limit_bytes=_AHEAD_BYTES, check=self._raise_if_stopped, name=name)

    def _read(self) -> Generator[Buffer, None, None]:
        self._source = source = self._open_source()
        try:
            yield from self._layout.stream(Paced(source, self._lease))
        finally:
            source.close()

    def _hashed(self) -> Generator[Buffer, None, None]:
        for buffer in self._reader:
            self._hash.update(buffer)
            yield buffer

    def _raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise Stopped("the snapshot was told to stop")


class Paced:
    """A source whose reads go through a throttle's lease; they end with Stopped."""

    def __init__(self, source: Source, lease: Takes) -> None:
        self.size_bytes = source.size_bytes
        self._source = source
        self._lease = lease

    def extents(self, context: str = ALLOCATION_CONTEXT) -> Iterator[Extent]:
        """Yield the extents."""
        return self._source.extents(context)

    def read_in_order(self, pieces: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
        """Yield the data of each piece, as fast as it may be read."""
        for buffer in self._source.read_in_order(pieces):
            if not self._lease.take(len(buffer)):
                raise Stopped("the snapshot was told to stop")
            yield buffer

    def abort(self) -> None:
        """Break the connection."""
        self._source.abort()

    def close(self) -> None:
        """Let go of it."""
        self._source.close()
