# SPDX-License-Identifier: Apache-2.0
"""SIGHUP changes all of the agent's mutable options, or none."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
from oslo_config import cfg

from common import conf
from compute_agent.cmd import Agent


class Unreadable:
    """An option group whose `max_increments` holds a value that cannot be."""

    bandwidth_limit = 50

    @property
    def max_increments(self) -> int:
        raise cfg.ConfigFileValueError("max_increments: not an integer")


def test_a_value_that_cannot_be_read_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "read_again", lambda _: None)
    agent = Agent.__new__(Agent)
    agent._settings = SimpleNamespace(
        capture=Unreadable(),
        agent=SimpleNamespace(progress_interval=2.0),
        report_interval=20,
        log_config_append=None,
    )
    parts = mock.Mock()
    agent.throttle, agent.reporter = parts.throttle, parts.reporter
    agent.announcer, agent.increments = parts.announcer, parts.increments
    agent.pipeline = parts.pipeline
    agent.reporter.progress_interval_s = agent.announcer.interval_s = 1.0
    with pytest.raises(cfg.ConfigFileValueError):
        agent.reload()
    assert parts.mock_calls == []
    assert (agent.reporter.progress_interval_s, agent.announcer.interval_s) == (1.0, 1.0)
