# SPDX-License-Identifier: Apache-2.0
"""n-api.log and n-cpu.log: oslo.log set up the way Nova's operators know it.

Modules below the composition roots use `logging.getLogger(__name__)`; the
request id and the instance come from the context bound to the thread
(`common.context`). The file handler follows a rename, so logrotate needs no
signal. A message is one line, whatever a caller put into a URL; only tracebacks
have more.
"""

from __future__ import annotations

import logging
import re

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


#: What would begin a line, move a terminal's cursor or not be UTF-8.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class OneLineRecord(logging.LogRecord):
    """A record whose message shows control characters as Python would write them."""

    def getMessage(self) -> str:  # the standard library's
        """Return the message, escaped."""
        return _CONTROLS.sub(_escaped, super().getMessage())


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode("ascii")


def setup(conf: cfg.ConfigOpts, file_name: str) -> None:
    """Configure logging from `conf`; with a `log_dir` and no `log_file`, write `file_name`."""
    if conf.log_dir and not conf.log_file:
        conf.set_override("log_file", file_name)
    logging.setLogRecordFactory(OneLineRecord)
    oslo_log.set_defaults(default_log_levels=[f"{name}={level}" for name, level in QUIET.items()])
    oslo_log.setup(conf, "stillframe")
    logging.captureWarnings(True)
