# SPDX-License-Identifier: Apache-2.0
"""What a policy cannot be is refused, and named, whether it is made or changed so."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.api.clouds import Cloud
from tests.api.policy_days import POLICIES, Clock, Days, wish


@pytest.fixture
def days(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Days:
    return Days(cloud, Clock(monkeypatch))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": ""}, "policy.name"),
        ({"name": " nightly"}, "policy.name"),
        ({"schedule": {}}, "cron"),
        ({"schedule": {"cron": "at night, please"}}, "schedule.cron"),
        ({"schedule": {"cron": "0 0 31 2 *"}}, "schedule.cron"),
        ({"schedule": {"cron": "*/14 * * * *"}}, "900 seconds apart"),
        ({"schedule": {"cron": "0,5 3 1 * *"}}, "900 seconds apart"),
        ({"schedule": {"cron": "0 2 * * *", "time_zone": "Mars/Olympus"}}, "schedule.time_zone"),
        ({"instances": {}}, "instances"),
        ({"instances": {"all": True, "name": "web"}}, "instances"),
        ({"instances": {"all": False}}, "instances.all"),
        ({"instances": {"ids": []}}, "instances.ids"),
        ({"instances": {"ids": ["web"]}}, "instances.ids"),
        ({"instances": {"ids": [str(uuid.uuid4())]}}, "instances.ids"),
        ({"instances": {"name": "(web"}}, "instances.name"),
        ({"instances": {"name": r"(a)\1"}}, "instances.name"),
        ({"instances": {"metadata": {"backup": 1}}}, "instances.metadata"),
        ({"retention": {}}, "retention"),
        ({"retention": {"last": 0, "daily": 0}}, "retention"),
        ({"retention": {"last": -1}}, "retention"),
        ({"retention": {"fortnightly": 1}}, "retention"),
        ({"full_every": 3}, "full_every"),
        ({"incremental": True, "full_every": 1}, "full_every"),
        ({"freeze": "perhaps"}, "freeze"),
        ({"verify": True}, "verify"),
        ({"missed_runs": "whatever"}, "missed_runs"),
        ({"jitter_s": -1}, "jitter_s"),
        ({"jitter_s": 86_401}, "jitter_s"),
        ({"enabled": "yes"}, "enabled"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_is_400_and_named(days: Days, changes: dict[str, Any], named: str) -> None:
    reply = days.ask("POST", POLICIES, {"policy": wish(**changes)})
    assert reply.status_code == 400
    assert named in reply.json["badRequest"]["message"]
    made = days.make()
    url = f"{POLICIES}/{made['id']}"
    reply = days.ask("PATCH", url, {"policy": changes})
    assert reply.status_code == 400
    assert named in reply.json["badRequest"]["message"]
    assert days.ask("GET", url).json["policy"] == made, "nothing has changed"
