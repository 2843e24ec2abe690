# SPDX-License-Identifier: Apache-2.0
"""What is to be told to whoever listens waits here for a thread that sends it (`rpc.Sender`).

So whoever has something to tell never waits for the broker. While that is away
the newest events are kept; what is lost is counted and told.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from common.context import RequestContext
from common.errors import BrokerUnavailable

LOG = logging.getLogger(__name__)

_AGAIN_S = 2.0
_KEPT = 1000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something to be told; `level` is a method of oslo.messaging's Notifier."""

    context: RequestContext
    level: str
    event_type: str
    payload: dict[str, Any]


class Outbox:
    """One of a daemon's services: sends what it is told, in order; thread-safe.

    What it is told is a function that makes the event, in the outbox's own thread
    (None: there is nothing to say any more). The thread starts with the first.
    """

    name = "notifications"

    def __init__(self, send: Callable[[Event], None], kept: int = _KEPT) -> None:
        self._send = send
        self._waiting: collections.deque[Callable[[], Event | None]] = collections.deque(
            maxlen=kept
        )
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_sending = False
        self._is_away = False
        self._lost = 0

    def put(self, make: Callable[[], Event | None]) -> None:
        """Take something to be sent; returns at once."""
        with self._changed:
            if len(self._waiting) == self._waiting.maxlen:
                self._lost += 1
            self._waiting.append(make)
            if self._thread is None:
                # A daemon thread: nobody's end waits for a broker.
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def start(self) -> None:
        """Do nothing: a forking server must have no thread before the first event."""

    def stop(self, deadline: float) -> None:
        """Let what waits be sent, as long as the broker is there."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_away or not (self._waiting or self._is_sending),
                timeout=max(0.0, deadline - time.monotonic()),
            )
            left = len(self._waiting) + self._is_sending
        if left:
            LOG.warning("%d notifications were not sent", left)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                make, self._is_sending = self._waiting.popleft(), True
            try:
                event = make()
                if event is not None:
                    self._send_when_possible(event)
            except Exception:
                LOG.exception("A notification could not be made, and is left out")
            with self._changed:
                self._is_sending = False
                self._changed.notify_all()

    def _send_when_possible(self, event: Event) -> None:
        while True:
            try:
                self._send(event)
            except BrokerUnavailable as error:
                self._say_away(error)
                time.sleep(_AGAIN_S)  # the broker tells nobody that it is back
            else:
                self._say_back()
                return

    def _say_away(self, error: BrokerUnavailable) -> None:
        if not self._is_away:
            LOG.warning(
                "Notifications wait for the broker, %s at the most: %s", self._waiting.maxlen, error
            )
        with self._changed:
            self._is_away = True
            self._changed.notify_all()

    def _say_back(self) -> None:
        if self._is_away:
            LOG.info("Notifications are sent again")
        with self._changed:
            self._is_away = False
            lost, self._lost = self._lost, 0
        if lost:
            LOG.warning("%d notifications were lost: too many had to wait", lost)
