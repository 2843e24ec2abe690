# SPDX-License-Identifier: Apache-2.0
"""Notifications as a consumer takes them from RabbitMQ, and a broker for them that is away."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
from amqp.exceptions import NotFound
from kombu.exceptions import OperationalError

from tests.functional.snapshots import (
    Asked,
    ask,
    ask_slowly,
    log_lines,
    post_action,
    wait_for,
)
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

QUEUES = ("notifications.info", "notifications.error")
NOWHERE = "rabbit://guest:guest@127.0.0.1:1/"


@pytest.fixture(scope="module")
def notifying(cloud: Cloud) -> Iterator[Callable[..., None]]:
    """Have the API send notifications, until these tests' end."""
    now: tuple[str, ...] = ()

    def restart(*options: str) -> None:
        nonlocal now
        if options == now and cloud.api.pid is not None:
            return
        now = options
        cloud.configure()
        if options:
            with cloud.config_file.open("a") as file:
                print("[oslo_messaging_notifications]", *options, sep="\n", file=file)
        cloud.api.stop()
        cloud.start_api()
        cloud.start_agent()  # it runs: this waits until the API has heard of it

    yield restart
    restart()


class Consumer:
    """Takes what is told of one instance."""

    def __init__(self, url: str, guest: Guest) -> None:
        self._url = url.replace("rabbit://", "amqp://")
        self._uuid = guest.uuid
        self.events: list[dict[str, Any]] = []

    def look(self) -> None:
        """Take what is there."""
        with kombu.Connection(self._url, connect_timeout=5) as connection:
            for name in QUEUES:
                # There is no queue before its first message.
                with contextlib.suppress(NotFound, OperationalError):
                    self._empty(kombu.Queue(name, no_declare=True)(connection.channel()))

    def has(self, event_type: str) -> bool:
        """Tell whether an event came by now."""
        self.look()
        return any(event["event_type"] == event_type for event in self.events)

    def _empty(self, queue: kombu.Queue) -> None:
        while (message := queue.get(no_ack=True)) is not None:
            event = json.loads(message.payload["oslo.message"])
            if data(event)["uuid"] == self._uuid:
                self.events.append(event)


def data(event: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = event["payload"]["stillframe_object.data"]
    return found


def test_a_consumer_hears_of_a_snapshot_and_of_power(
    cloud: Cloud, new_guest: Callable[..., Guest], notifying: Callable[..., None]
) -> None:
    notifying("driver = messagingv2")
    guest = new_guest()
    consumer = Consumer(cloud.transport_url, guest)
    asked = ask_slowly(cloud, guest)
    job = asked.ended()
    wait_for(lambda: consumer.has("instance.snapshot.end"), "the end of the snapshot", 30)
    kinds = [event["event_type"] for event in consumer.events]
    assert kinds[0] == "instance.snapshot.start"
    assert kinds[-1] == "instance.snapshot.end"
    assert set(kinds[1:-1]) == {"instance.snapshot.progress"}
    last = consumer.events[-1]
    assert last["publisher_id"].startswith("stillframe-api:")
    assert last["_context_request_id"] == data(last)["request_id"]
    assert data(last)["job"] | {"host": None} == job | {"host": None}
    assert (data(last)["host"], data(last)["display_name"]) == (cloud.host, guest.name)
    assert data(last)["snapshot_image_id"] == asked.image_id

    assert post_action(cloud, guest, {"os-stop": None}).status_code == 202
    wait_for(lambda: consumer.has("instance.power_off.end"), "the end of the guest", 60)
    assert data(consumer.events[-1])["power_state"] == "shutdown"


def test_a_consumer_hears_of_a_failure(
    cloud: Cloud,
    running_guest: Guest,
    notifying: Callable[..., None],
    agent_options: Callable[..., None],
) -> None:
    agent_options("method = offline")
    notifying("driver = messagingv2")
    job = ask(cloud, running_guest).ended()
    assert job["state"] == "error"
    consumer = Consumer(cloud.transport_url, running_guest)
    wait_for(lambda: consumer.has("instance.snapshot.error"), "the error", 30)
    (error,) = [one for one in consumer.events if one["priority"] == "ERROR"]
    fault = {"exception": job["reason_code"], "exception_message": job["reason"]}
    assert data(error)["fault"] == fault


def test_a_broker_for_notifications_that_is_away_holds_nothing_up(
    cloud: Cloud, running_guest: Guest, notifying: Callable[..., None]
) -> None:
    notifying("driver = messagingv2", f"transport_url = {NOWHERE}")
    began = time.monotonic()
    asked: Asked = ask(cloud, running_guest)
    assert time.monotonic() - began < 10
    assert asked.ended()["state"] == "done"
    assert log_lines(cloud, "n-api.log", "Notifications wait for the broker", "127.0.0.1:1")
    began = time.monotonic()
    cloud.api.stop()
    assert time.monotonic() - began < 10
