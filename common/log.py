# SPDX-License-Identifier: Apache-2.0
"""n-api.log and n-cpu.log: oslo.log set up the way Nova's operators know it.

Modules below the composition roots use `logging.getLogger(__name__)`; the
request id and the instance come from the context bound to the thread
(`common.context`). The file handler follows a rename, so logrotate needs no
signal.
"""

from __future__ import annotations

import logging

from oslo_config import cfg
from oslo_log import log as oslo_log

#: Loggers that tell their own story at INFO, not ours.
QUIET = {
    "alembic": "WARNING",
    "amqp": "WARNING",
    "kombu": "WARNING",
    "keystoneauth": "WARNING",
    "oslo.messaging": "INFO",
    "oslo_messaging": "INFO",
    "oslo_db": "WARNING",
    "requests": "WARNING",
    "sqlalchemy": "WARNING",
    "urllib3": "WARNING",
}


def setup(conf: cfg.ConfigOpts, file_name: str) -> None:
    """Configure logging from `conf`; with a `log_dir` and no `log_file`, write `file_name`."""
    if conf.log_dir and not conf.log_file:
        conf.set_override("log_file", file_name)
    oslo_log.set_defaults(default_log_levels=[f"{name}={level}" for name, level in QUIET.items()])
    oslo_log.setup(conf, "stillframe")
    logging.captureWarnings(True)
