# SPDX-License-Identifier: Apache-2.0
"""How much one project may ask: jobs, metadata, requests, and waiting for events."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import token_bucket

from api_service.errors import Forbidden, NoFreeStream, OverQuota, TooManyRequests

_BURST_S = 10
#: As many as Nova allows by default.
SERVER_METADATA_ITEMS = 128


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What is counted in the database or in the request itself."""

    #: Jobs that make images; None: any number.
    open_jobs: int | None = None
    image_metadata_items: int = 128

    def require_metadata(self, items: int) -> None:
        """Raise OverQuota, in Nova's words, for more items than an image may be given."""
        if items > self.image_metadata_items:
            raise OverQuota("Image metadata limit exceeded")

    def require_server_metadata(self, metadata: Mapping[str, str]) -> None:
        """Raise Forbidden, in Nova's words, for more items than a server may have."""
        if len(metadata) > SERVER_METADATA_ITEMS:
            raise Forbidden(f"Maximum number of metadata items exceeds {SERVER_METADATA_ITEMS}")


class Rates:
    """Lets each project make so many requests a second of this process; thread-safe."""

    def __init__(self, per_second: float = 0) -> None:
        storage, burst = token_bucket.MemoryStorage(), max(1, round(per_second * _BURST_S))
        self._limiter = token_bucket.Limiter(per_second, burst, storage) if per_second else None

    def take(self, project_id: str) -> None:
        """Count a request; raise TooManyRequests if it is one too many."""
        if self._limiter is not None and not self._limiter.consume(project_id):
            raise TooManyRequests("This project makes too many requests; slow down.")


class Streams:
    """Bounds who waits for events, each in a thread of the server; thread-safe.

    `most` may wait at a time, half of them of one project; none for longer than
    `longest_s`. What is waited for is looked at every `look_s`.
    """

    def __init__(self, *, most: int = 4, longest_s: float = 300.0, look_s: float = 1.0) -> None:
        self.longest_s = longest_s
        self.look_s = look_s
        self._most = most
        self._of_project = max(1, most // 2)
        self._open: Counter[str | None] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def take(self, project_id: str | None) -> Callable[[], None]:
        """Take a place and return what gives it back, harmless when called twice.

        Raises NoFreeStream or TooManyRequests (the project has its share).
        """
        with self._lock:
            if self._open.total() >= self._most or self._stopping.is_set():
                raise NoFreeStream("Too many wait for events here now; try again.")
            if self._open[project_id] >= self._of_project:
                raise TooManyRequests("This project waits for as many events as it may at a time.")
            self._open[project_id] += 1
        given_back = threading.Lock()

        def give_back() -> None:
            if given_back.acquire(blocking=False):
                with self._lock:
                    self._open -= Counter([project_id])

        return give_back

    @contextmanager
    def taken(self, project_id: str | None) -> Iterator[None]:
        """Hold a place for the block; raises as `take` does."""
        give_back = self.take(project_id)
        try:
            yield
        finally:
            give_back()

    def pause(self) -> bool:
        """Wait until it is time to look again; False when this process stops."""
        return not self._stopping.wait(self.look_s)

    def stop(self) -> None:
        """Let everybody go who waits, and nobody wait any more."""
        self._stopping.set()
