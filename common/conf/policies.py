# SPDX-License-Identifier: Apache-2.0
"""[policies]: backups that the API asks for by itself, as `/v1/policies` says."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "policies"

OPTS = [
    cfg.IntOpt(
        "backups_per_host",
        default=2,
        min=1,
        help="""
Backups of policies that one host may have at work or waiting; the others begin
when one has ended. What users ask for is not counted. More than the hosts'
`max_concurrent_snapshots` gains nothing.
""",
    ),
    cfg.IntOpt(
        "min_interval",
        default=900,
        min=60,
        help="""
Seconds that must lie between two times of a policy; one that is due more often
is refused with 400. Each time leaves a row for each of the policy's instances.
""",
    ),
    cfg.IntOpt(
        "missed_after",
        default=300,
        min=1,
        help="""
Seconds after its time that a run counts as missed, because no API ran: from then
on the policy's `missed_runs` says whether it is caught up with or skipped.
""",
    ),
    cfg.IntOpt(
        "history_days",
        default=90,
        min=1,
        help="""
Days that a policy's runs are listed after they ended; those whose backup still
stands are listed for as long as that does.
""",
    ),
]
