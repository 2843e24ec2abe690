# SPDX-License-Identifier: Apache-2.0
"""Configuration: one module a group, each with `OPTS` and its group's name.

Only composition roots (`cmd`, `wsgi`, `manage`, `app`) call `load` and read
the values; every module below gets plain values. `opts.list_opts` feeds the
sample generator.
"""

from __future__ import annotations

from collections.abc import Sequence

from keystoneauth1 import loading as keystone_loading
from oslo_concurrency import lockutils
from oslo_config import cfg
from oslo_log import log as oslo_log

from common.conf import agent, api, base, capture, glance, libvirt

PROJECT = "stillframe"
GROUPS = (base, api, agent, capture, glance, libvirt)

#: oslo.messaging reads its tracing options from the global object only, so
#: both daemons use it too (a private ConfigOpts fails at the first cast).
CONF: cfg.ConfigOpts = cfg.CONF


def register(conf: cfg.ConfigOpts) -> None:
    """Register every option of the project on `conf` (harmless when done twice)."""
    for module in GROUPS:
        # oslo.config knows the default group as no group.
        conf.register_opts(module.OPTS, group=None if module is base else module.GROUP)
    keystone_loading.register_auth_conf_options(conf, glance.GROUP)
    keystone_loading.register_session_conf_options(conf, glance.GROUP)


def load(argv: Sequence[str], prog: str) -> cfg.ConfigOpts:
    """Register, parse `argv` and the files that it or the defaults name.

    Without `--config-file` those are stillframe.conf and `prog`.conf in
    /etc/stillframe and ~/.stillframe, and their .conf.d folders.
    """
    register(CONF)
    if not hasattr(CONF, "log_dir"):
        oslo_log.register_options(CONF)
    CONF(list(argv), project=PROJECT, prog=prog)
    # oslo.messaging's queue manager keeps its counters behind file locks.
    lockutils.set_defaults(f"{CONF.state_path}/lock")
    return CONF
