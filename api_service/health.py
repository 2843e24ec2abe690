# SPDX-License-Identifier: Apache-2.0
"""What the health page looks at: the database, and RabbitMQ with the API's queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from oslo_config import cfg
from sqlalchemy import text

from api_service.store.engine import Database
from common import broker
from common.errors import BrokerUnavailable, StillframeError
from common.messages import API_TOPIC

_BROKER_TIMEOUT_S = 3.0
#: Anybody may ask for the health page; not each call may open a connection.
_BROKER_LOOK_S = 5.0


def checks(settings: cfg.ConfigOpts, database: Database) -> dict[str, Callable[[], None]]:
    """Return what is looked at, by name; each raises what is wrong."""
    return {
        "database": lambda: _look_at_database(database),
        "broker": _at_most_every(_BROKER_LOOK_S, lambda: _look_at_broker(settings)),
    }


def check_broker(settings: cfg.ConfigOpts, hosts: list[str]) -> broker.BrokerReport:
    """Look at the broker, the API's queue and the queues of `hosts`."""
    queues = broker.agent_queues(hosts) if hosts else [API_TOPIC]
    # Registered with the transport, unless that is not RabbitMQ's.
    options = getattr(settings, "oslo_messaging_rabbit", None)
    return broker.check(settings.transport_url, queues, _BROKER_TIMEOUT_S, options)


def _look_at_broker(settings: cfg.ConfigOpts) -> None:
    if check_broker(settings, []).is_blocked:
        raise BrokerUnavailable("an alarm (memory or disk) of RabbitMQ stops all that is published")


def _look_at_database(database: Database) -> None:
    with database.read() as session:
        session.execute(text("SELECT 1"))


def _at_most_every(seconds: float, check: Callable[[], Any]) -> Callable[[], None]:
    """Return a check that looks again only after that time; a failure is told each time."""
    lock = threading.Lock()
    looked_at, failure = -seconds, None

    def remembered() -> None:
        nonlocal looked_at, failure
        with lock:
            if time.monotonic() - looked_at >= seconds:
                try:
                    check()
                    failure = None
                except StillframeError as error:
                    failure = error
                looked_at = time.monotonic()
            if failure is not None:
                # Without the frames of the times before.
                raise failure.with_traceback(None)

    return remembered
