# SPDX-License-Identifier: Apache-2.0
"""RPC and notifications over RabbitMQ: the only importer of oslo.messaging.

Servers hand a method's arguments to the endpoint as they came; a message that
no endpoint speaks (another major version, an unknown method) goes to the
server's `on_refused` instead of vanishing in a traceback. Casts use
`at_least_once`, so that one to a queue that does not exist raises at once
instead of being lost silently.

oslo.messaging itself waits for a broker that is away without end, in whatever
it does. So a server starts in a thread of its own, and clients look for the
broker first, where they have reason to, and try but a few times.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# futurist and oslo.service import eventlet where it is installed, though
# nothing of ours uses it; an operator need not read its farewell at each start.
warnings.filterwarnings("ignore", message="(?s).*Eventlet is deprecated")

from oslo_service import backend as service_backend  # noqa: E402

# Must come before oslo.messaging is imported, which otherwise chooses eventlet.
service_backend.init_backend(service_backend.BackendType.THREADING)

import oslo_messaging  # noqa: E402
from kombu.exceptions import OperationalError  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_messaging import opts as messaging_opts  # noqa: E402
from oslo_messaging.rpc import dispatcher as rpc_dispatcher  # noqa: E402

from common.context import RequestContext, from_wire  # noqa: E402
from common.errors import AgentUnavailable, BrokerUnavailable, StillframeError  # noqa: E402
from common.notifier import Event  # noqa: E402

LOG = logging.getLogger(__name__)

Refused = Callable[[Mapping[str, Any], Mapping[str, Any], str], None]

_AMQP_PORT = 5672
_CONNECT_TIMEOUT_S = 2.0
#: How long a daemon's start waits for its server to consume, before it goes on without.
_START_PATIENCE_S = 3.0
_AGAIN_S = 2.0
#: Drivers of notifications that send nothing: as good as none.
_SILENT = frozenset({"", "noop"})


class _ContextSerializer(oslo_messaging.NoOpSerializer):  # type: ignore[misc]
    """Sends a RequestContext as a dict; a tenant's token never goes over the broker."""

    def serialize_context(self, context: RequestContext) -> dict[str, Any]:
        return {**context.to_dict(), "auth_token": None}

    def deserialize_context(self, context: dict[str, Any]) -> RequestContext:
        return from_wire(context)


class _Dispatcher(rpc_dispatcher.RPCDispatcher):  # type: ignore[misc]
    """Tells `on_refused` of messages that no endpoint speaks."""

    def __init__(self, endpoints: Sequence[object], on_refused: Refused | None) -> None:
        super().__init__(endpoints, _ContextSerializer(), rpc_dispatcher.DefaultRPCAccessPolicy)
        self._on_refused = on_refused

    def dispatch(self, incoming: Any) -> Any:
        try:
            return super().dispatch(incoming)
        except (oslo_messaging.UnsupportedVersion, rpc_dispatcher.NoSuchMethod) as refused:
            LOG.error("Refused the message %r: %s", incoming.message.get("method"), refused)
            if self._on_refused is not None:
                self._on_refused(incoming.ctxt, incoming.message, str(refused))
            # "Expected" keeps the server from logging a traceback; a caller still gets it.
            raise rpc_dispatcher.ExpectedException from refused
        except StillframeError as refused:
            LOG.error("Refused %s: %s", incoming.message.get("method"), refused)
            raise rpc_dispatcher.ExpectedException from refused


class Transport:
    """One connection pool to the broker; made once by a daemon's composition root.

    `name` is nobody else's. oslo.messaging's queue manager names the queue for answers
    after machine and program: two agents on one machine, or on two of one name, would
    take each other's answers.
    """

    def __init__(self, conf: cfg.ConfigOpts, name: str | None = None) -> None:
        if name is not None:
            register_options(conf)
            conf.set_default("processname", name, group="oslo_messaging_rabbit")
        self._transport = oslo_messaging.get_rpc_transport(conf)
        #: How many messages a server handles at a time.
        self.threads = _threads(conf)
        self._brokers = brokers_of(conf)

    def require_broker(self) -> None:
        """Raise BrokerUnavailable unless a host of transport_url takes a connection."""
        require_broker(self._brokers)

    def service(
        self,
        *,
        topic: str,
        host: str,
        version: str,
        endpoints: Sequence[object],
        on_refused: Refused | None = None,
    ) -> RpcService:
        """Return the RPC server for `endpoints` as a service of a daemon."""
        return RpcService(
            lambda: self.server(
                topic=topic, host=host, version=version, endpoints=endpoints, on_refused=on_refused
            ),
            self.require_broker,
        )

    def server(
        self,
        *,
        topic: str,
        host: str,
        version: str,
        endpoints: Sequence[object],
        on_refused: Refused | None = None,
    ) -> Any:
        """Return an unstarted RPC server (`start()`, `stop()`, `wait()`).

        A method is the first of `endpoints` that has one of that name.
        """
        target = oslo_messaging.Target(topic=topic, server=host, version=version)
        for endpoint in endpoints:
            endpoint.target = oslo_messaging.Target(version=version)  # type: ignore[attr-defined]
        return oslo_messaging.rpc.server.RPCServer(
            self._transport, target, _Dispatcher(endpoints, on_refused), executor="threading"
        )

    def client(self, *, topic: str, version: str, timeout_s: float) -> Client:
        """Return a client that casts to, and calls, the servers of `topic`."""
        target = oslo_messaging.Target(topic=topic, version=version)
        client = oslo_messaging.get_rpc_client(
            self._transport,
            target,
            timeout=timeout_s,
            # Each host of transport_url once, and one of them again.
            retry=max(1, len(self._brokers)),
            serializer=_ContextSerializer(),
            transport_options=oslo_messaging.TransportOptions(at_least_once=True),
        )
        return Client(client, topic, self.require_broker, timeout_s)

    def close(self) -> None:
        """Close every connection of the pool."""
        self._transport.cleanup()


class Client:
    """Casts and calls with every wait bounded and every failure typed."""

    def __init__(
        self, client: Any, topic: str, require_broker: Callable[[], None], timeout_s: float
    ) -> None:
        self._client = client
        #: How long a call waits for its answer, and for somebody to take it.
        self.timeout_s = timeout_s
        self._topic = topic
        self._require_broker = require_broker
        #: Nothing was sent yet, or the broker was away: look before sending.
        self._in_doubt = True

    def cast(
        self, context: RequestContext, method: str, *, host: str | None = None, **arguments: Any
    ) -> None:
        """Send and do not wait for the work.

        Raises AgentUnavailable if no queue takes the message, BrokerUnavailable
        if the broker cannot be reached.
        """
        self._send("cast", context, method, host, arguments)

    def call(
        self, context: RequestContext, method: str, *, host: str | None = None, **arguments: Any
    ) -> Any:
        """Send and wait for the answer; raises as `cast` does, also when none comes in time."""
        return self._send("call", context, method, host, arguments)

    def _send(
        self,
        way: str,
        context: RequestContext,
        method: str,
        host: str | None,
        arguments: Mapping[str, Any],
    ) -> Any:
        client = self._client.prepare(server=host) if host else self._client
        # A call may have to make the queue for its answer first, which knows no end.
        if self._in_doubt or way == "call":
            self._require_broker()
        try:
            answer = getattr(client, way)(context, method, **arguments)
        except oslo_messaging.exceptions.MessageUndeliverable:
            raise AgentUnavailable(
                f"nothing listens on {self._topic}{f' for host {host}' if host else ''}"
            ) from None
        except oslo_messaging.MessagingTimeout as timeout:
            raise AgentUnavailable(f"no answer to {method} in time: {timeout}") from timeout
        except (oslo_messaging.MessageDeliveryFailure, OperationalError, OSError) as failure:
            self._in_doubt = True
            raise BrokerUnavailable(f"{method} could not be sent: {failure}") from failure
        self._in_doubt = False
        return answer


class RpcService:
    """oslo.messaging's server as one of the daemon's services.

    `make_server` returns an unstarted one, `require_broker` raises while starting
    it is in vain. A broker that is away holds up neither the daemon's start nor
    its end: consuming begins when it comes.
    """

    name = "rpc server"

    def __init__(
        self, make_server: Callable[[], Any], require_broker: Callable[[], None] = lambda: None
    ) -> None:
        self._make_server = make_server
        self._require_broker = require_broker
        self._lock = threading.Lock()
        self._server: Any = None
        self._is_late = False
        self._tried = threading.Event()
        self._stopping = threading.Event()
        # A daemon thread: where oslo.messaging waits for ever, nothing ends it but the process.
        self._thread = threading.Thread(target=self._run, name="rpc-start", daemon=True)

    def start(self) -> None:
        """Begin to consume; return soon, also where that must wait for the broker."""
        self._thread.start()
        if not self._tried.wait(_START_PATIENCE_S):
            self._say_late("it does not let this daemon in")

    def stop(self, deadline: float) -> None:
        """Consume no more, and let the methods at work return, while there is time."""
        with self._lock:
            self._stopping.set()
            server = self._server
        if server is None:
            return  # still waiting for the broker: there is nothing to end
        server.stop()
        try:
            server.wait(timeout=max(0.1, deadline - time.monotonic()))
        except oslo_messaging.server.TaskTimeout:
            LOG.warning("A message is still being handled; its work is in the journal or ledger")

    def _run(self) -> None:
        while not self._stopping.is_set():
            failure = None
            try:
                self._begin()
            except Exception as error:
                # Whatever it is (the broker away, a user that it refuses), only trying on helps.
                failure = error
            if failure is not None:
                self._say_late(failure)
            self._tried.set()
            if failure is None:
                return
            self._stopping.wait(_AGAIN_S)

    def _begin(self) -> None:
        self._require_broker()
        server = self._make_server()  # one that failed to start cannot be started again
        server.start()
        with self._lock:
            self._server = server
            was_stopped = self._stopping.is_set()
        if was_stopped:
            server.stop()
        elif self._is_late:
            LOG.info("The broker is there: messages are consumed now")

    def _say_late(self, why: object) -> None:
        if not self._is_late:
            self._is_late = True
            LOG.warning("Messages are not consumed yet, waiting for the broker: %s", why)


def brokers_of(conf: cfg.ConfigOpts, transport_url: str | None = None) -> list[tuple[str, int]]:
    """Return the hosts and ports of a transport URL, by default of `transport_url`."""
    url = oslo_messaging.TransportURL.parse(conf, transport_url)
    hosts = [(host.hostname or "localhost", host.port or _AMQP_PORT) for host in url.hosts]
    in_memory = url.transport == "fake"
    return hosts or ([] if in_memory else [("localhost", _AMQP_PORT)])


def require_broker(brokers: Sequence[tuple[str, int]]) -> None:
    """Raise BrokerUnavailable if there are brokers and none takes a connection."""
    failure = None
    for address in brokers:
        try:
            socket.create_connection(address, _CONNECT_TIMEOUT_S).close()
        except OSError as error:
            failure = BrokerUnavailable(f"no broker at {address[0]}:{address[1]}: {error}")
        else:
            return
    if failure is not None:
        raise failure


def _threads(conf: cfg.ConfigOpts) -> int:
    """Return an option that oslo.messaging registers with the first server only."""
    name = "executor_thread_pool_size"
    options = dict(messaging_opts.list_opts())[None]
    conf.register_opts([option for option in options if option.name == name])
    return int(conf[name])


class Sender:
    """oslo.messaging's notifier, as `[oslo_messaging_notifications]` describes it."""

    def __init__(self, conf: cfg.ConfigOpts, publisher_id: str) -> None:
        transport = oslo_messaging.get_notification_transport(conf)
        group = conf.oslo_messaging_notifications
        self.is_silent = set(group.driver) <= _SILENT
        self._brokers = brokers_of(conf, group.transport_url)
        self._notifier = oslo_messaging.Notifier(
            transport,
            publisher_id=publisher_id,
            serializer=_ContextSerializer(),
            # The configured default is to try for ever.
            retry=max(1, len(self._brokers)),
        )

    def send(self, event: Event) -> None:
        """Send; raise BrokerUnavailable if there is none. What fails later the log tells."""
        require_broker(self._brokers)
        send = getattr(self._notifier, event.level)
        send(event.context, event.event_type, event.payload)


def register_options(conf: cfg.ConfigOpts) -> None:
    """Register `transport_url` and RabbitMQ's group where no transport is made (manage)."""
    oslo_messaging.set_transport_defaults("openstack")
    oslo_messaging.TransportURL.parse(conf)
    for group, options in messaging_opts.list_opts():
        if group == "oslo_messaging_rabbit":
            conf.register_opts(options, group=group)
