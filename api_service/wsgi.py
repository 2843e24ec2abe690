# SPDX-License-Identifier: Apache-2.0
"""`api_service.wsgi:application` for uWSGI, gunicorn, granian or any other WSGI server.

Configuration comes from the default places, or from the files that the
environment variable STILLFRAME_CONFIG_FILES names (separated by colons).
`stillframe-api` with `[api] serve_http = false` must run beside it.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from api_service.app import LOG_FILE, PROG, behind_proxy, make_parts
from api_service.middleware import LoopbackOnly
from common import conf, log

LOG = logging.getLogger(__name__)


def make_application() -> Any:
    """Load the configuration and wire the application."""
    files = [name for name in os.environ.get("STILLFRAME_CONFIG_FILES", "").split(":") if name]
    settings = conf.load([part for name in files for part in ("--config-file", name)], PROG)
    log.setup(settings, LOG_FILE)
    made = make_parts(settings).application
    if settings.api.auth_strategy == "noauth":
        LOG.warning(
            "auth_strategy = noauth: whoever reaches this server is whoever they say they are. "
            "For demos and tests only."
        )
        if not settings.api.noauth_anywhere:
            made.add_middleware(LoopbackOnly())
    return behind_proxy(made, settings)


application = make_application()
