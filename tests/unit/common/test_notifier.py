# SPDX-License-Identifier: Apache-2.0
"""Whoever has something to tell waits for nobody; what cannot be told is kept, and counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from common import context, notifier
from common.errors import BrokerUnavailable
from common.notifier import Event, Outbox


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "_AGAIN_S", 0.01)


def event(name: str) -> Callable[[], Event]:
    made = Event(context=context.new(), level="info", event_type=name, payload={})
    return lambda: made


class Broker:
    """Takes what is sent, while it is there."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.tried = threading.Event()
        self.taken: list[str] = []

    def send(self, sent: Event) -> None:
        self.tried.set()
        if not self.there.is_set():
            raise BrokerUnavailable("away")
        self.taken.append(sent.event_type)


def soon() -> float:
    return time.monotonic() + 10


def until(holds: Callable[[], bool]) -> None:
    deadline = soon()
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_events_are_sent_in_order_before_it_stops() -> None:
    broker = Broker()
    broker.there.set()
    outbox = Outbox(broker.send)
    for name in ("a", "b", "c"):
        outbox.put(event(name))
    outbox.stop(soon())
    assert broker.taken == ["a", "b", "c"]


def test_without_events_there_is_no_thread() -> None:
    before = threading.active_count()
    outbox = Outbox(Broker().send)
    outbox.start()
    outbox.stop(soon())
    assert threading.active_count() == before


def test_while_the_broker_is_away_the_newest_are_kept_and_the_loss_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    broker = Broker()
    outbox = Outbox(broker.send, kept=2)
    outbox.put(event("first"))
    assert broker.tried.wait(10)
    began = time.monotonic()
    for name in ("a", "b", "c", "d"):
        outbox.put(event(name))
    assert time.monotonic() - began < 1
    broker.there.set()
    until(lambda: len(broker.taken) == 3)
    outbox.stop(soon())
    assert broker.taken == ["first", "c", "d"]
    assert [line.split(":")[0] for line in caplog.messages] == [
        "Notifications wait for the broker, 2 at the most",
        "Notifications are sent again",
        "2 notifications were lost",
    ]


def test_a_broker_that_is_away_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    broker = Broker()
    outbox = Outbox(broker.send)
    outbox.put(event("a"))
    assert broker.tried.wait(10)
    began = time.monotonic()
    outbox.stop(soon())
    assert time.monotonic() - began < 1
    assert "1 notifications were not sent" in caplog.text
    broker.there.set()
    until(lambda: broker.taken == ["a"])
    until(lambda: "sent again" in caplog.text)


def test_an_event_that_cannot_be_made_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker()
    broker.there.set()
    outbox = Outbox(broker.send)
    outbox.put(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    outbox.put(lambda: None)
    outbox.put(event("a"))
    outbox.stop(soon())
    assert broker.taken == ["a"]
    assert "could not be made" in caplog.text
