# SPDX-License-Identifier: Apache-2.0
"""`stillframe-api`: REST, the agents' reports, the dispatcher and the reaper in one process."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from cheroot import wsgi
from oslo_config import cfg
from oslo_db import exception as db_errors
from oslo_log import log as oslo_log

from api_service.app import LOG_FILE, PROG, Parts, make_parts
from api_service.reaper import Reaper
from api_service.status import StatusEndpoint
from common import conf, daemon, log
from common.errors import ConfigurationError, StillframeError
from common.messages import API_TOPIC, RPC_VERSION
from common.rpc import RpcService

LOG = logging.getLogger(__name__)


_LISTEN_BACKLOG = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Run the API until it is told to stop; return the process's exit code."""
    try:
        settings = conf.load(sys.argv[1:] if argv is None else argv, PROG)
        log.setup(settings, LOG_FILE)
        require_safe_identity(settings)
        return _daemon(settings, make_parts(settings)).run()
    except (StillframeError, cfg.Error, db_errors.DBError, OSError) as error:
        return daemon.fail(f"{PROG} cannot start: {error}")


def require_safe_identity(settings: cfg.ConfigOpts) -> None:
    """Say loudly that nobody is asked who they are; refuse it where strangers could come.

    Raises ConfigurationError for noauth on an address that is not the loopback.
    """
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


class HttpServer:
    """cheroot as one of the daemon's services."""

    name = "http server"

    def __init__(self, application: Any, settings: cfg.ConfigOpts) -> None:
        self._server = wsgi.Server(
            (str(settings.api.bind_host), settings.api.bind_port),
            application,
            numthreads=settings.api.threads,
            server_name=socket.gethostname(),
            # cheroot's 5 makes a burst wait a second for TCP to try again, or be reset.
            request_queue_size=_LISTEN_BACKLOG,
        )
        self._thread = threading.Thread(target=self._server.serve, name="http", daemon=True)

    def start(self) -> None:
        """Listen and serve; raises OSError if the address is taken."""
        self._server.prepare()
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Take no more connections and let the requests at hand finish."""
        self._server.shutdown_timeout = max(0.0, deadline - time.monotonic())
        self._server.stop()

    def alive(self) -> bool:
        """Tell whether the accepting thread runs (for the watchdog)."""
        return self._thread.is_alive()


def _daemon(settings: cfg.ConfigOpts, parts: Parts) -> daemon.Daemon:
    endpoint = StatusEndpoint(parts.ledger, parts.inventory)
    server = parts.transport.server(
        topic=API_TOPIC, host=socket.gethostname(), version=RPC_VERSION, endpoint=endpoint
    )
    reaper = Reaper(
        database=parts.database,
        ledger=parts.ledger,
        agents=parts.agents,
        images=parts.images,
        dispatcher=parts.dispatcher,
        interval_s=settings.api.dispatch_interval,
        silence_s=settings.api.job_silence_timeout,
    )
    services: list[daemon.Service] = [RpcService(server), reaper]
    checks = [reaper.alive]
    if settings.api.serve_http:
        http = HttpServer(parts.application, settings)
        services.append(http)
        checks.append(http.alive)
    return daemon.Daemon(
        PROG,
        services,
        stop_timeout_s=settings.graceful_shutdown_timeout,
        reload=lambda: _reload(settings),
        healthy=lambda: all(check() for check in checks),
    )


def _reload(settings: cfg.ConfigOpts) -> None:
    settings.mutate_config_files()
    oslo_log.setup(settings, "stillframe")


if __name__ == "__main__":
    sys.exit(main())
