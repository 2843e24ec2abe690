# SPDX-License-Identifier: Apache-2.0
"""Entry point `oslo.config.opts`: every option of the project, for the sample."""

from __future__ import annotations

from typing import Any

from keystoneauth1 import loading as keystone_loading

from common import conf


def list_opts() -> list[tuple[str, list[Any]]]:
    """Return (group, options) pairs, in the order in which the sample shows them."""
    listed = [(module.GROUP, list(module.OPTS)) for module in conf.GROUPS]
    keystone = [
        *keystone_loading.get_auth_common_conf_options(),
        *keystone_loading.get_session_conf_options(),
    ]
    return [
        (group, options + keystone if group == conf.glance.GROUP else options)
        for group, options in listed
    ]
