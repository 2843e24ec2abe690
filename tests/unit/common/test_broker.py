# SPDX-License-Identifier: Apache-2.0
"""What the broker check makes of a transport URL (the rest is in tests/functional)."""

from __future__ import annotations

import pytest

from common.broker import agent_queues, check, kombu_urls
from common.errors import BrokerUnavailable, ConfigurationError


def test_each_host_of_a_cluster_gets_a_url_of_its_own() -> None:
    url = "rabbit://u:p@a:5672,u:p@b:5673/cloud?ssl=0"
    assert kombu_urls(url) == ["amqp://u:p@a:5672/cloud", "amqp://u:p@b:5673/cloud"]


def test_another_transport_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match="must begin with rabbit://"):
        kombu_urls("fake://")


def test_the_queues_of_a_cloud_are_the_api_s_and_each_agent_s() -> None:
    assert agent_queues(["n1"]) == ["stillframe-api", "stillframe-compute.n1"]


def test_a_broker_that_is_not_there_is_told_without_the_password() -> None:
    with pytest.raises(BrokerUnavailable) as raised:
        check("rabbit://u:secret@127.0.0.1:1/", [], timeout_s=1)
    assert "secret" not in str(raised.value)
