# SPDX-License-Identifier: Apache-2.0
"""The broker check: is RabbitMQ there, does it let us work, are the agents listening?

Used by `stillframe-manage broker check` and the health page. It speaks kombu
directly, because it asks what oslo.messaging hides: the server's own words,
whether we may declare a queue, and the depth and consumers of each agent's
queue. It changes nothing but a queue of its own that is gone with it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from amqp import exceptions as amqp_errors
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from common.errors import BrokerUnavailable, ConfigurationError
from common.messages import API_TOPIC, COMPUTE_TOPIC

_NOT_FOUND = 404


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueueReport:
    """One queue: `depth` messages wait in it for `consumers` consumers; None: no such queue."""

    name: str
    depth: int | None
    consumers: int | None

    @property
    def healthy(self) -> bool:
        """Somebody consumes the queue."""
        return bool(self.consumers)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BrokerReport:
    """What the check found; `connect_ms` is the time to an open, authenticated connection."""

    server: str
    version: str
    connect_ms: float
    may_declare: bool
    queues: tuple[QueueReport, ...]

    @property
    def healthy(self) -> bool:
        """We may work there and every queue asked for has a consumer."""
        return self.may_declare and all(queue.healthy for queue in self.queues)


def kombu_urls(transport_url: str) -> list[str]:
    """Return one amqp URL a host from an oslo.messaging transport URL.

    Raises ConfigurationError if the URL names no RabbitMQ transport.
    """
    scheme, _, rest = transport_url.partition("://")
    if scheme not in ("rabbit", "kombu+amqp", "amqp"):
        raise ConfigurationError(
            f"transport_url must begin with rabbit://, not {scheme}:// (see docs/configuration.md)"
        )
    hosts, slash, virtual_host = rest.partition("/")
    virtual_host = virtual_host.partition("?")[0]
    return [f"amqp://{host}{slash}{virtual_host}" for host in hosts.split(",")]


def agent_queues(hosts: Iterable[str]) -> list[str]:
    """Return the names of the queues that a working cloud of these hosts consumes."""
    return [API_TOPIC, *(f"{COMPUTE_TOPIC}.{host}" for host in hosts)]


def check(transport_url: str, queues: Iterable[str], timeout_s: float = 5.0) -> BrokerReport:
    """Look at the broker and at `queues`.

    Raises BrokerUnavailable with the server's own words if no host of the URL
    lets us in within `timeout_s`, ConfigurationError if the URL is not RabbitMQ's.
    """
    began = time.monotonic()
    with _connected(kombu_urls(transport_url), timeout_s) as connection:
        connect_ms = (time.monotonic() - began) * 1e3
        properties = connection.connection.server_properties
        return BrokerReport(
            server=str(properties.get("product", "unknown")),
            version=str(properties.get("version", "unknown")),
            connect_ms=connect_ms,
            may_declare=_may_declare(connection),
            queues=tuple(_look_at(connection, name) for name in queues),
        )


@contextmanager
def _connected(urls: list[str], timeout_s: float) -> Iterator[Any]:
    connection: Any = Connection(  # type: ignore[no-untyped-call]
        urls[0], alternates=urls[1:], connect_timeout=timeout_s, failover_strategy="round-robin"
    )
    try:
        connection.ensure_connection(max_retries=len(urls), timeout=timeout_s)
        yield connection
    except amqp_errors.AccessRefused as refused:
        raise BrokerUnavailable(f"the broker refuses the user: {refused.reply_text}") from refused
    except (OperationalError, amqp_errors.AMQPError, OSError) as failure:
        where = connection.as_uri(include_password=False)
        raise BrokerUnavailable(f"no working broker at {where}: {failure}") from failure
    finally:
        connection.release()


def _may_declare(connection: Any) -> bool:
    """Declare a queue of our own, exclusive and deleted with the channel."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue="", exclusive=True, auto_delete=True)
    except amqp_errors.AccessRefused:
        return False  # the server has closed the channel
    channel.close()
    return True


def _look_at(connection: Any, name: str) -> QueueReport:
    channel = connection.channel()
    try:
        declared = channel.queue_declare(queue=name, passive=True)
    except amqp_errors.ChannelError as error:
        if error.reply_code != _NOT_FOUND:
            raise
        return QueueReport(name=name, depth=None, consumers=None)
    channel.close()
    return QueueReport(name=name, depth=declared.message_count, consumers=declared.consumer_count)
