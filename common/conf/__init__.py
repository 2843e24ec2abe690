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

from common.conf import (
    agent,
    api,
    base,
    capture,
    glance,
    libvirt,
    policies,
    quota,
    rebuild,
    restore,
    spawn,
)
from common.errors import ConfigurationError

PROJECT = "stillframe"
#: The operator's tool works on what the API works with, so it reads the API's files.
_READS_AS = {"stillframe-manage": "stillframe-api"}
GROUPS = (
    base,
    api,
    quota,
    policies,
    agent,
    capture,
    restore,
    rebuild,
    spawn,
    glance,
    libvirt,
)

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

    Without `--config-file` those are stillframe.conf and `prog`.conf (for
    stillframe-manage, stillframe-api.conf) in /etc/stillframe or ~/.stillframe,
    then their .conf.d folders. With it they are the named ones and no others:
    a second cloud on the machine must not get half of the first one's options.
    """
    register(CONF)
    if not hasattr(CONF, "log_dir"):
        oslo_log.register_options(CONF)
    reads_as = _READS_AS.get(prog, prog)
    names_files = any(word.partition("=")[0] == "--config-file" for word in argv)
    CONF(
        list(argv),
        project=PROJECT,
        prog=prog,
        default_config_files=cfg.find_config_files(PROJECT, reads_as),
        default_config_dirs=[] if names_files else cfg.find_config_dirs(PROJECT, reads_as),
    )
    # oslo.messaging's queue manager keeps its counters behind file locks.
    lockutils.set_defaults(f"{CONF.state_path}/lock")
    return CONF


def read_again(conf: cfg.ConfigOpts) -> None:
    """Have `conf` obey the mutable options as they stand in its files now.

    Raises ConfigurationError, and changes nothing, if a file cannot be read or
    holds a value that cannot be (also of an option that is not mutable: it would
    keep the next start from succeeding).
    """
    try:
        _try_files(conf)
        conf.mutate_config_files()
    except (cfg.Error, ValueError, OSError) as error:
        raise ConfigurationError(str(error)) from error


def _try_files(conf: cfg.ConfigOpts) -> None:
    """Read every option of ours, on an object that nobody uses."""
    trial = cfg.ConfigOpts()
    register(trial)
    # oslo.log's; a wrong one would end the process instead of raising.
    trial.register_opt(cfg.BoolOpt("debug"))
    trial(
        [],
        project=PROJECT,
        default_config_files=conf.config_file,
        default_config_dirs=conf.config_dir,
    )
    for group in GROUPS:
        place = trial if group is base else trial[group.GROUP]
        for option in group.OPTS:
            place[option.dest]
    _ = trial.debug
