# SPDX-License-Identifier: Apache-2.0
"""[agent]: what the compute agent assumes of domains and how it reports."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "agent"

OPTS = [
    cfg.StrOpt(
        "default_project_id",
        help="""
Project that owns a domain whose metadata (ours or Nova's) names no owner. Unset:
such a domain is not announced, and the log says so once.
""",
    ),
    cfg.StrOpt(
        "default_user_id",
        help="User that goes with `default_project_id`; unset: the project id is used.",
    ),
    cfg.IntOpt(
        "full_report_every",
        default=6,
        min=1,
        help="Every so many heartbeats carry the complete list of instances.",
    ),
    cfg.FloatOpt(
        "progress_interval",
        default=1.0,
        min=0.1,
        mutable=True,
        help="Seconds between two progress reports of a job to the API.",
    ),
    cfg.FloatOpt(
        "progress_log_interval",
        default=5.0,
        min=0.5,
        mutable=True,
        help="Seconds between two progress lines of an upload in n-cpu.log.",
    ),
]
