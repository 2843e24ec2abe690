# SPDX-License-Identifier: Apache-2.0
"""RPC over RabbitMQ: the only importer of oslo.messaging.

Servers hand a method's arguments to the endpoint as they came; a message that
no endpoint speaks (another major version, an unknown method) goes to the
server's `on_refused` instead of vanishing in a traceback. Casts use
`at_least_once`, so that one to a queue that does not exist raises at once
instead of being lost silently.
"""

from __future__ import annotations

import logging
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
from oslo_config import cfg  # noqa: E402
from oslo_messaging.rpc import dispatcher as rpc_dispatcher  # noqa: E402

from common.context import RequestContext, from_wire  # noqa: E402
from common.errors import AgentUnavailable, BrokerUnavailable, StillframeError  # noqa: E402

LOG = logging.getLogger(__name__)

Refused = Callable[[Mapping[str, Any], Mapping[str, Any], str], None]


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
    """One connection pool to the broker; made once by a daemon's composition root."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._transport = oslo_messaging.get_rpc_transport(conf)

    def server(
        self,
        *,
        topic: str,
        host: str,
        version: str,
        endpoint: object,
        on_refused: Refused | None = None,
    ) -> Any:
        """Return an unstarted RPC server (`start()`, `stop()`, `wait()`) for `endpoint`."""
        target = oslo_messaging.Target(topic=topic, server=host, version=version)
        endpoint.target = oslo_messaging.Target(version=version)  # type: ignore[attr-defined]
        return oslo_messaging.rpc.server.RPCServer(
            self._transport, target, _Dispatcher([endpoint], on_refused), executor="threading"
        )

    def client(self, *, topic: str, version: str, timeout_s: float) -> Client:
        """Return a client that casts to, and calls, the servers of `topic`."""
        return Client(self._transport, topic, version, timeout_s)

    def close(self) -> None:
        """Close every connection of the pool."""
        self._transport.cleanup()


class Client:
    """Casts and calls with every wait bounded and every failure typed."""

    def __init__(self, transport: Any, topic: str, version: str, timeout_s: float) -> None:
        self._topic = topic
        self._client = oslo_messaging.get_rpc_client(
            transport,
            oslo_messaging.Target(topic=topic, version=version),
            timeout=timeout_s,
            serializer=_ContextSerializer(),
            transport_options=oslo_messaging.TransportOptions(at_least_once=True),
        )

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
        try:
            return getattr(client, way)(context, method, **arguments)
        except oslo_messaging.exceptions.MessageUndeliverable:
            raise AgentUnavailable(
                f"nothing listens on {self._topic}{f' for host {host}' if host else ''}"
            ) from None
        except oslo_messaging.MessagingTimeout as timeout:
            raise AgentUnavailable(f"no answer to {method} in time: {timeout}") from timeout
        except (oslo_messaging.MessageDeliveryFailure, OSError) as failure:
            raise BrokerUnavailable(f"{method} could not be sent: {failure}") from failure


class RpcService:
    """oslo.messaging's server as one of the daemon's services."""

    name = "rpc server"

    def __init__(self, server: Any) -> None:
        self._server = server

    def start(self) -> None:
        """Begin to consume."""
        self._server.start()

    def stop(self, deadline: float) -> None:
        """Consume no more, and let the methods at work return, while there is time."""
        self._server.stop()
        try:
            self._server.wait(timeout=max(0.1, deadline - time.monotonic()))
        except oslo_messaging.server.TaskTimeout:
            LOG.warning("A message is still being handled; its work is in the journal or ledger")


def register_options(conf: cfg.ConfigOpts) -> None:
    """Register `transport_url` where no transport is made (the operator's tool)."""
    oslo_messaging.set_transport_defaults("openstack")
    oslo_messaging.TransportURL.parse(conf)
