# SPDX-License-Identifier: Apache-2.0
"""The broker check: is RabbitMQ there, does it take messages, are the agents listening?

Used by `stillframe-manage broker check` and the health page. It speaks kombu
directly, because it asks what oslo.messaging hides: the server's own words,
whether we may declare a queue, whether an alarm (memory, disk) stops what is
published, and the depth and consumers of each agent's queue. It changes nothing
but a queue of its own that is gone with it. TLS is as the daemons speak it, and
no wait is longer than the caller's timeout.
"""

from __future__ import annotations

import dataclasses
import os
import ssl
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import amqp
from amqp import exceptions as amqp_errors
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from oslo_utils import strutils

from common.errors import BrokerUnavailable, ConfigurationError
from common.messages import API_TOPIC, COMPUTE_TOPIC

_NOT_FOUND = 404
#: How long a broker that has just failed may take to say goodbye, in seconds.
_FAREWELL_S = 0.1
_FAILURES = (OperationalError, amqp_errors.AMQPError, OSError)

#: Option of `[oslo_messaging_rabbit]` → parameter of kombu's `ssl`.
_TLS_FILES = {"ssl_key_file": "keyfile", "ssl_cert_file": "certfile", "ssl_ca_file": "ca_certs"}
_TLS_OPTIONS = ("ssl", "ssl_version", *_TLS_FILES)
#: The values of `ssl_version`, each where this host's OpenSSL has it.
_TLS_VERSIONS = {
    "sslv23": "PROTOCOL_TLS",
    "tlsv1": "PROTOCOL_TLSv1",
    "tlsv1_1": "PROTOCOL_TLSv1_1",
    "tlsv1_2": "PROTOCOL_TLSv1_2",
}


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
    #: An alarm stops whoever publishes; False also where we may not try.
    is_blocked: bool
    queues: tuple[QueueReport, ...]

    @property
    def healthy(self) -> bool:
        """We may work there, messages are taken, every queue asked for has a consumer."""
        works = self.may_declare and not self.is_blocked
        return works and all(queue.healthy for queue in self.queues)


def kombu_urls(transport_url: str) -> list[str]:
    """Return one amqp URL a host from an oslo.messaging transport URL.

    Raises ConfigurationError if the URL names no RabbitMQ transport.
    """
    scheme, _, rest = transport_url.partition("://")
    if scheme not in ("rabbit", "kombu+amqp", "amqp"):
        raise ConfigurationError(
            f"transport_url must begin with rabbit://, not {scheme}:// (see docs/configuration.md)"
        )
    hosts, slash, virtual_host = rest.partition("?")[0].partition("/")
    return [f"amqp://{host}{slash}{virtual_host}" for host in hosts.split(",")]


def kombu_tls(transport_url: str, options: Mapping[str, Any]) -> dict[str, Any] | bool:
    """Return what kombu's Connection takes as `ssl`, as oslo.messaging's driver makes it.

    `options` are those of `[oslo_messaging_rabbit]`; the query of the URL goes
    before them, as it does in the daemons. Raises ConfigurationError if an
    option's value cannot work.
    """
    query = dict(urllib.parse.parse_qsl(transport_url.partition("?")[2]))
    told: dict[str, Any] = {name: query.get(name, options.get(name)) for name in _TLS_OPTIONS}
    if not strutils.bool_from_string(told["ssl"]):
        return False
    parameters: dict[str, Any] = {}
    if told["ssl_version"]:
        parameters["ssl_version"] = _tls_protocol(told["ssl_version"])
    for name, parameter in _TLS_FILES.items():
        if not told[name]:
            continue
        if not os.access(told[name], os.R_OK):
            raise ConfigurationError(
                f"[oslo_messaging_rabbit] {name} = {told[name]}: no file that this user can read"
            )
        parameters[parameter] = told[name]
    if "ca_certs" in parameters:
        parameters["cert_reqs"] = ssl.CERT_REQUIRED
    return parameters or True


def agent_queues(hosts: Iterable[str]) -> list[str]:
    """Return the names of the queues that a working cloud of these hosts consumes."""
    return [API_TOPIC, *(f"{COMPUTE_TOPIC}.{host}" for host in hosts)]


def check(
    transport_url: str,
    queues: Iterable[str],
    timeout_s: float = 5.0,
    options: Mapping[str, Any] | None = None,
) -> BrokerReport:
    """Look at the broker and at `queues`; `options` are those of `[oslo_messaging_rabbit]`.

    Raises BrokerUnavailable with the server's own words if no host of the URL
    lets us in within `timeout_s`, or an answer takes longer; ConfigurationError
    if the URL is not RabbitMQ's or an option cannot work.
    """
    began = time.monotonic()
    tls = kombu_tls(transport_url, options or {})
    with _connected(kombu_urls(transport_url), timeout_s, tls) as connection:
        connect_ms = (time.monotonic() - began) * 1e3
        properties = connection.connection.server_properties
        looked_at = tuple(_look_at(connection, name) for name in queues)
        # Last: from a connection that has published in an alarm nothing more is read.
        may_declare, is_blocked = _try_out(connection)
        return BrokerReport(
            server=str(properties.get("product", "unknown")),
            version=str(properties.get("version", "unknown")),
            connect_ms=connect_ms,
            may_declare=may_declare,
            is_blocked=is_blocked,
            queues=looked_at,
        )


@contextmanager
def _connected(
    urls: list[str], timeout_s: float, tls: dict[str, Any] | bool = False
) -> Iterator[Any]:
    connection = _connect(urls, timeout_s, tls)
    socket = connection.connection.sock
    # The library leaves it without one, and a broker that hangs would be waited for without end.
    socket.settimeout(timeout_s)
    try:
        yield connection
    except _FAILURES as failure:
        with suppress(OSError):
            socket.settimeout(_FAREWELL_S)
        raise BrokerUnavailable(f"no working broker {_told(connection, failure)}") from failure
    finally:
        connection.release()


def _connect(urls: list[str], timeout_s: float, tls: dict[str, Any] | bool) -> Any:
    """Return a connection to the first host that lets us in; each gets its share of the time."""
    failures = []
    for url in urls:
        connection: Any = Connection(  # type: ignore[no-untyped-call]
            url, connect_timeout=timeout_s / len(urls), ssl=_tls_to(url, tls)
        )
        try:
            connection.ensure_connection(max_retries=0)
        except _FAILURES as failure:
            failures.append(_told(connection, failure))
            connection.release()
        else:
            return connection
    raise BrokerUnavailable(f"no working broker {'; '.join(failures)}")


def _tls_to(url: str, tls: dict[str, Any] | bool) -> dict[str, Any] | bool:
    if isinstance(tls, dict) and "ca_certs" in tls:
        return {**tls, "server_hostname": urllib.parse.urlsplit(url).hostname}
    return tls


def _tls_protocol(name: str) -> Any:
    try:
        return getattr(ssl, _TLS_VERSIONS[name.lower()])
    except (KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"[oslo_messaging_rabbit] ssl_version = {name} is none of this host's: "
            f"{', '.join(_TLS_VERSIONS)}"
        ) from error


def _told(connection: Any, failure: Exception) -> str:
    where = connection.as_uri(include_password=False)
    if isinstance(failure, amqp_errors.AccessRefused):
        return f"at {where}: the broker refuses the user: {failure.reply_text}"
    return f"at {where}: {failure}"


def _try_out(connection: Any) -> tuple[bool, bool]:
    """Publish to a queue of our own, exclusive and deleted with the connection.

    Return whether we may declare one, and whether an alarm blocks us: the broker
    says so, instead of confirming, to the first message of a connection.
    """
    answers: list[bool] = []
    connection.connection.on_blocked = lambda _: answers.append(True)
    channel = connection.channel()
    channel.events["basic_ack"].add(lambda *_: answers.append(False))
    try:
        queue = channel.queue_declare(queue="", exclusive=True, auto_delete=True).queue
    except amqp_errors.AccessRefused:
        return False, False  # the server has closed the channel
    channel.confirm_select()
    channel.basic_publish(amqp.Message("?"), routing_key=queue)
    with suppress(amqp_errors.AccessRefused):  # some may declare and not publish
        while not answers:
            connection.drain_events()
    is_blocked = True in answers
    if is_blocked:
        # It does not hear a goodbye either.
        connection.connection.sock.settimeout(_FAREWELL_S)
    return True, is_blocked


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
