# SPDX-License-Identifier: Apache-2.0
"""`stillframe-api`: REST, the agents' reports, the dispatcher and the reaper in one process."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from cheroot import server as cheroot
from cheroot import wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter
from oslo_config import cfg
from oslo_db import exception as db_errors
from oslo_log import log as oslo_log

from api_service.app import LOG_FILE, PROG, Parts, behind_proxy, make_parts
from api_service.health import check_broker
from api_service.quotas import Streams
from api_service.reaper import Reaper
from api_service.rotation import Rotation
from api_service.rotator import Rotator
from api_service.status import StatusEndpoint
from api_service.store.backups import BackupList
from common import conf, daemon, log
from common.errors import ConfigurationError, StillframeError
from common.messages import API_TOPIC, RPC_VERSION

LOG = logging.getLogger(__name__)


_LISTEN_BACKLOG = 128
#: cheroot's 10 makes every client beyond connect anew for each request.
_CONNECTIONS_KEPT = 256
_UNREAD_MAX_BYTES = 1 << 20
#: The request line and all headers; Keystone's longest tokens are half of it.
_HEADERS_MAX_BYTES = 1 << 15


def main(argv: Sequence[str] | None = None) -> int:
    """Run the API until it is told to stop; return the process's exit code."""
    try:
        settings = conf.load(sys.argv[1:] if argv is None else argv, PROG)
        log.setup(settings, LOG_FILE)
        daemon.lead_process_group()
        require_safe_identity(settings)
        return _daemon(settings, make_parts(settings)).run()
    except (StillframeError, cfg.Error, db_errors.DBError, OSError) as error:
        return daemon.fail(f"{PROG} cannot start: {error}")


def require_safe_identity(settings: cfg.ConfigOpts) -> None:
    """Say loudly that nobody is asked who they are; refuse it where strangers could come.

    Raises ConfigurationError for noauth on an address that is not the loopback.
    """
    if settings.api.auth_strategy != "noauth":
        return
    address = str(settings.api.bind_host)
    if not _is_loopback(address) and settings.api.serve_http and not settings.api.noauth_anywhere:
        raise ConfigurationError(
            f"[api] auth_strategy = noauth on {address} would let anybody be anybody; bind to "
            "127.0.0.1 (or set noauth_anywhere = true if that is what you want)"
        )
    LOG.warning(
        "auth_strategy = noauth: whoever reaches %s:%d is whoever they say they are. "
        "For demos and tests only.",
        address,
        settings.api.bind_port,
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"  # any other name may be resolved to anything


class _Request(cheroot.HTTPRequest):
    """cheroot's request, whose connection is closed where its body's end was not found.

    cheroot would take what follows for the next request, or wait for it once more.
    """

    def read_request_headers(self) -> bool:
        """Refuse a length that is no number (`int` takes `+1` and `1_0`)."""
        if not super().read_request_headers():  # type: ignore[no-untyped-call]
            return False
        length = self.inheaders.get(b"Content-Length", b"0").strip()
        if not length.isdigit():
            self.simple_response("400 Bad Request", "Malformed Content-Length Header.")
            return False
        return True

    def send_headers(self) -> None:
        """Read what nobody wanted of the body, so that the reply is read; or give up."""
        if b"Transfer-Encoding" in self.inheaders:
            self.close_connection = True
        elif (unread := getattr(self.rfile, "remaining", 0)) > 0:
            try:
                self.rfile.read(min(unread, _UNREAD_MAX_BYTES))
            except OSError:
                LOG.debug("The rest of a request's body did not come")
            self.close_connection = self.close_connection or self.rfile.remaining > 0
        super().send_headers()


class _Connection(cheroot.HTTPConnection):
    RequestHandlerClass = _Request


class _Tls(BuiltinSSLAdapter):
    """cheroot's TLS, whose handshake waits for no one but its own thread.

    cheroot's own is made where connections are taken: a client that says
    nothing would keep all others out until the time-out.
    """

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        """Return the socket, whose first read or write makes the handshake."""
        wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, {"wsgi.url_scheme": "https", "HTTPS": "on"}


class HttpServer:
    """cheroot as one of the daemon's services."""

    name = "http server"

    def __init__(
        self, application: Any, settings: cfg.ConfigOpts, streams: Streams | None = None
    ) -> None:
        self._streams = streams
        self._server = wsgi.Server(
            (str(settings.api.bind_host), settings.api.bind_port),
            application,
            numthreads=settings.api.threads,
            server_name=socket.gethostname(),
            # cheroot's 5 makes a burst wait a second for TCP to try again, or be reset.
            request_queue_size=_LISTEN_BACKLOG,
        )
        self._server.ConnectionClass = _Connection
        self._server.keep_alive_conn_limit = _CONNECTIONS_KEPT
        # cheroot's default keeps whatever it is sent.
        self._server.max_request_header_size = _HEADERS_MAX_BYTES
        self._server.ssl_adapter = _tls(settings)
        self._thread = threading.Thread(target=self._server.serve, name="http", daemon=True)

    def start(self) -> None:
        """Listen and serve; raises OSError if the address is taken."""
        self._server.prepare()
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Take no more connections and let the requests at hand finish; none waits for events."""
        if self._streams is not None:
            self._streams.stop()
        self._server.shutdown_timeout = max(0.0, deadline - time.monotonic())
        self._server.stop()

    def alive(self) -> bool:
        """Tell whether the accepting thread runs (for the watchdog)."""
        return self._thread.is_alive()


def _tls(settings: cfg.ConfigOpts) -> _Tls | None:
    certificate, key = settings.api.ssl_cert_file, settings.api.ssl_key_file
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigurationError("[api] ssl_cert_file and ssl_key_file go together")
    try:
        return _Tls(certificate, key)
    except OSError as error:
        raise ConfigurationError(f"[api] ssl_cert_file or ssl_key_file: {error}") from error


def _daemon(settings: cfg.ConfigOpts, parts: Parts) -> daemon.Daemon:
    rotator = _rotator(settings, parts)
    status = StatusEndpoint(parts.ledger, parts.inventory, parts.agents, rotator.poke)
    server = parts.transport.service(
        topic=API_TOPIC,
        host=socket.gethostname(),
        version=RPC_VERSION,
        endpoints=[status, parts.calls],
    )
    reaper = Reaper(
        database=parts.database,
        ledger=parts.ledger,
        agents=parts.agents,
        images=parts.images,
        dispatcher=parts.dispatcher,
        interval_s=settings.api.dispatch_interval,
        silence_s=settings.api.job_silence_timeout,
        is_consuming=lambda: _is_consuming(settings),
    )
    # The last to stop: the others may have something to tell at their end.
    services: list[daemon.Service] = [parts.outbox] if parts.outbox else []
    services += [server, reaper, rotator]
    checks = [reaper.alive, rotator.alive]
    if settings.api.serve_http:
        application = behind_proxy(parts.application, settings)
        http = HttpServer(application, settings, parts.streams)
        services.append(http)
        checks.append(http.alive)
    return daemon.Daemon(
        PROG,
        services,
        stop_timeout_s=settings.graceful_shutdown_timeout,
        reload=lambda: _reload(settings),
        healthy=lambda: all(check() for check in checks),
    )


def _rotator(settings: cfg.ConfigOpts, parts: Parts) -> Rotator:
    backups = BackupList(parts.database)
    return Rotator(
        database=parts.database,
        backups=backups,
        rotation=Rotation(backups, parts.images),
        interval_s=settings.api.dispatch_interval,
    )


def _is_consuming(settings: cfg.ConfigOpts) -> bool:
    """Tell whether the agents' reports are read, by this process or another."""
    try:
        return check_broker(settings, []).healthy
    except StillframeError:
        return False


def _reload(settings: cfg.ConfigOpts) -> None:
    conf.read_again(settings)
    oslo_log.setup(settings, "stillframe")


if __name__ == "__main__":
    sys.exit(main())
