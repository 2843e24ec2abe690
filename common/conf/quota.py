# SPDX-License-Identifier: Apache-2.0
"""[quota]: how much one project may ask of the API."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "quota"

OPTS = [
    cfg.IntOpt(
        "open_jobs",
        default=100,
        min=-1,
        help="""
Jobs that one project may have waiting or at work; another snapshot, backup
or rebuild is refused with 403 then. Creations, deletions and trials of
images are counted, too, but never refused for it. Changes of power are not
counted: a server can be stopped whatever else waits. -1 is no limit.
""",
    ),
    cfg.IntOpt(
        "image_metadata_items",
        default=128,
        min=0,
        help="""
Metadata items that a request for a snapshot may bring along; more are refused
with 403. Glance has a limit of its own (image_property_quota), which counts what
the image inherits, too.
""",
    ),
    cfg.IntOpt(
        "policies",
        default=50,
        min=-1,
        help="""
Backup policies that one project may have; another one is refused with 403. -1 is
no limit.
""",
    ),
    cfg.IntOpt(
        "instances",
        default=-1,
        min=-1,
        help="""
Instances that one project may have, those that hosts announced among them; a new one
beyond is refused with 403. -1 is no limit.
""",
    ),
    cfg.FloatOpt(
        "requests_per_second",
        default=0,
        min=0,
        help="""
Requests that one project may make of this process in the long run; ten seconds'
worth may come at once. What comes beyond is refused with 429. Each process
counts for itself. 0 is no limit.
""",
    ),
]
