# SPDX-License-Identifier: Apache-2.0
"""[glance]: the image service; keystoneauth's options stand in the same group."""

from __future__ import annotations

from keystoneauth1 import loading as keystone_loading
from keystoneauth1 import noauth
from keystoneauth1.plugin import BaseAuthPlugin
from oslo_config import cfg

from common.errors import ConfigurationError
from common.glance import GlanceSettings

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
    cfg.BoolOpt(
        "chunked_upload",
        default=True,
        help="""
Send an image's data in chunks, as Nova and glanceclient do: Glance spends a third
less processor time on it than on a body with a Content-Length. The size goes along
in x-openstack-image-size. Turn it off for a Glance older than 2025.2 whose store
allocates by the length (RBD), or behind a proxy that takes no chunks.
""",
    ),
]


def settings(conf: cfg.ConfigOpts) -> GlanceSettings:
    """Return what ImageService needs; without `auth_type`, Glance is used without identity.

    Raises ConfigurationError if neither a Keystone nor an endpoint is configured.
    """
    group = conf[GROUP]
    if group.auth_type is None and not group.endpoint_override:
        raise ConfigurationError(
            "[glance] needs auth_type and its credentials (see docs/configuration.md), or "
            "endpoint_override where the image service runs without Keystone"
        )
    auth: BaseAuthPlugin | None
    if group.auth_type is None:
        auth = noauth.NoAuth(endpoint=group.endpoint_override)
    else:
        auth = keystone_loading.load_auth_from_conf_options(conf, GROUP)
    session = keystone_loading.load_session_from_conf_options(
        conf, GROUP, auth=auth, timeout=group.request_timeout
    )
    return GlanceSettings(
        session=session,
        endpoint_override=group.endpoint_override,
        region_name=group.region_name,
        interfaces=tuple(group.valid_interfaces),
        num_retries=group.num_retries,
        request_timeout_s=group.request_timeout,
        upload_timeout_s=group.upload_timeout,
        chunked_upload=group.chunked_upload,
    )
