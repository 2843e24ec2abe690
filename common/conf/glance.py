# SPDX-License-Identifier: Apache-2.0
"""[glance]: the image service; keystoneauth's options stand in the same group."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "glance"

OPTS = [
    cfg.StrOpt(
        "endpoint_override",
        help="""
URL of the image service, without a version. Needed where there is no Keystone
(`auth_type` unset); with Keystone the catalogue is asked instead.
""",
    ),
    cfg.StrOpt("region_name", help="Region whose image service to use."),
    cfg.ListOpt(
        "valid_interfaces",
        default=["internal", "public"],
        help="Interfaces to look for in the catalogue, best first.",
    ),
    cfg.IntOpt(
        "num_retries",
        default=3,
        min=0,
        help="""
How often a call to Glance that found it away is tried again; an upload always
starts again from byte 0 of the same frozen export.
""",
    ),
    cfg.FloatOpt(
        "request_timeout",
        default=30.0,
        min=1.0,
        help="Seconds that Glance may take to answer about an image's record.",
    ),
    cfg.FloatOpt(
        "upload_timeout",
        default=300.0,
        min=1.0,
        help="Seconds that an upload may stand still (not: last) before it is broken off.",
    ),
]
