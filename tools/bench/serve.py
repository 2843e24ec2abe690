# SPDX-License-Identifier: Apache-2.0
"""What runs beside the API that is measured, each in a process of its own.

python -m tools.bench.serve bare PORT BYTES    one resource that does nothing, on the API's server
python -m tools.bench.serve agent FILE HOST    an agent that takes casts and does nothing with them
"""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import falcon
from oslo_config import cfg

from api_service.cmd import HttpServer
from common import conf, rpc
from common.conf import api as api_options
from common.messages import COMPUTE_TOPIC, RPC_VERSION

_STOP_S = 5.0


class Bare:
    """A body of so many bytes, made beforehand."""

    def __init__(self, size: int) -> None:
        self._data = b'{"server": "' + b"x" * (size - 14) + b'"}'

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Send it."""
        response.content_type = falcon.MEDIA_JSON
        response.data = self._data


class IdleAgent:
    """Takes jobs, and that is all."""

    def snapshot_instance(self, _context: Any, **_arguments: Any) -> None:
        """Forget it."""


def bare(port: str, size: str) -> None:
    """Serve the bare resource with the server, and the number of threads, that the API has."""
    settings = cfg.ConfigOpts()
    settings.register_opts(api_options.OPTS, group=api_options.GROUP)
    settings([], project="bench", default_config_files=[], default_config_dirs=[])
    settings.set_override("bind_port", int(port), group="api")
    application: falcon.App[Any, Any] = falcon.App()
    application.add_route("/bare", Bare(int(size)))
    server = HttpServer(application, settings)
    server.start()
    signal.sigwait({signal.SIGTERM})
    server.stop(time.monotonic() + _STOP_S)


def agent(config_file: str, host: str) -> None:
    """Consume what is cast to a host."""
    settings = conf.load(["--config-file", config_file], "stillframe-compute")
    transport = rpc.Transport(settings)
    service = transport.service(
        topic=COMPUTE_TOPIC, host=host, version=RPC_VERSION, endpoints=[IdleAgent()]
    )
    service.start()
    signal.sigwait({signal.SIGTERM})
    service.stop(time.monotonic() + _STOP_S)
    transport.close()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    {"bare": bare, "agent": agent}[sys.argv[1]](*sys.argv[2:])
