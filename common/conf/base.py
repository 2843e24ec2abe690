# SPDX-License-Identifier: Apache-2.0
"""[DEFAULT]: what both daemons need to know; named as in Nova where Nova has it."""

from __future__ import annotations

import socket

from oslo_config import cfg

GROUP = "DEFAULT"

OPTS = [
    cfg.HostAddressOpt(
        "host",
        default=socket.gethostname(),
        sample_default="<current hostname>",
        help="""
Name of this hypervisor, as the API and RabbitMQ know it. It is part of the
agent's queue name, so two agents must never share one, and an agent that is
renamed leaves its waiting casts behind. Beside Nova, use nova-compute's value.
""",
    ),
    cfg.StrOpt(
        "state_path",
        default="/var/lib/stillframe",
        help="""
Directory for what must survive a restart: the agent's journal and, unless
`[database] connection` says otherwise, the API's SQLite database. It must be on
a local, persistent file system and writable by the daemon's user.
""",
    ),
    cfg.IntOpt(
        "report_interval",
        default=10,
        min=1,
        mutable=True,
        help="Seconds between two heartbeats of an agent to the API.",
    ),
    cfg.IntOpt(
        "service_down_time",
        default=60,
        min=2,
        help="""
Seconds without a heartbeat after which the API holds an agent to be down:
requests for its instances are refused with 409 until it reports again. Keep it
at several times `report_interval`.
""",
    ),
    cfg.IntOpt(
        "max_concurrent_snapshots",
        default=5,
        min=1,
        help="""
Snapshots, backups, rebuilds, creations and trials of images that one agent
works on at a time; the others wait in its journal. Changes of power and
deletions are not counted: up to 16 of them are at work besides.
""",
    ),
    cfg.IntOpt(
        "shutdown_timeout",
        default=60,
        min=0,
        mutable=True,
        help="""
Seconds that a guest may take to shut down by itself when it is stopped or
rebooted; then its power is cut. 0 cuts it at once.
""",
    ),
    cfg.IntOpt(
        "graceful_shutdown_timeout",
        default=60,
        min=0,
        help="""
Seconds that a daemon, told to stop, waits for the work at hand. The agent then
stops what is left, undoes it and reports it; no guest is left paused.
""",
    ),
]
