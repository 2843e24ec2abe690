# SPDX-License-Identifier: Apache-2.0
"""Clocks that differ, or are set while we run: nobody is dead for that, and no job lost."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from common import clock
from common.reports import InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud

HOUR_S = 3600.0
EXPIRES_S = 5.0


def says(cloud: Cloud, *instances: InstanceRecord, ahead_s: float, **more: Any) -> None:
    """Let a heartbeat come from a host whose clock is ahead of ours by so much."""
    at = clock.epoch_s() + ahead_s
    cloud.announce(*instances, at=at, expires_s=EXPIRES_S, **more)


def state_of(cloud: Cloud) -> str:
    (service,) = cloud.get("/v2.1/os-services", "admin:ops").json["services"]
    return str(service["state"])


def set_our_clock(monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    """Let our clock be ahead (or behind) of the host's from now on; it goes on from there."""
    real_now, real_epoch = dt.datetime.now, clock.epoch_s
    ahead = dt.timedelta(seconds=ahead_s)
    monkeypatch.setattr(clock, "now", lambda: real_now(dt.UTC) + ahead)
    monkeypatch.setattr(clock, "epoch_s", lambda: real_epoch() + ahead_s)


@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S])
def test_an_agent_lives_whatever_its_hosts_clock_says(
    cloud: Cloud, instance: InstanceRecord, ahead_s: float
) -> None:
    says(cloud, instance, ahead_s=ahead_s)
    assert state_of(cloud) == "up"
    assert cloud.snapshot(instance.uuid).status_code == 202


@pytest.mark.parametrize("ahead_s", [-HOUR_S, HOUR_S])
def test_the_deadline_of_a_cast_is_told_by_the_clock_of_its_host(
    cloud: Cloud, instance: InstanceRecord, ahead_s: float
) -> None:
    says(cloud, instance, ahead_s=ahead_s)
    cloud.snapshot(instance.uuid)
    left_s = cloud.casts.next()["deadline"] - (clock.epoch_s() + ahead_s)
    assert 0 < left_s < HOUR_S / 2


def test_a_report_of_before_says_nothing_of_now(cloud: Cloud, instance: InstanceRecord) -> None:
    """It waited in the queue while the API was stopped: an older agent's has no end."""
    cloud.announce(instance, host="other", at=clock.epoch_s() - HOUR_S)
    services = cloud.get("/v2.1/os-services?host=other", "admin:ops").json["services"]
    assert [one["state"] for one in services if one["host"] == "other"] == ["down"]


def test_what_changes_is_seen_after_our_clock_was_put_back(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(cloud, instance, ahead_s=0)
    set_our_clock(monkeypatch, -HOUR_S)
    says(cloud, instance, agent_says.instance(name="new"), ahead_s=HOUR_S)
    names = {
        one["name"] for one in cloud.get("/v2.1/servers?all_tenants=1", "admin:ops").json["servers"]
    }
    assert names == {"web", "new"}
    says(cloud, ahead_s=HOUR_S)
    assert cloud.get(f"/v2.1/servers/{instance.uuid}").status_code == 404


def test_an_agent_that_died_before_our_clock_was_put_back_counts_as_down(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(cloud, instance, ahead_s=0)
    set_our_clock(monkeypatch, -HOUR_S)
    assert state_of(cloud) == "down"


def test_after_our_clock_was_set_nobody_is_given_up_before_all_have_spoken(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    cloud.report("job_accepted", agent_says.accepted(job_id, instance.uuid, image_id))
    judging = cloud.make_reaper(silence_s=60.0, grace_s=0.05)
    monkeypatch.setattr(judging, "_judges", True)
    set_our_clock(monkeypatch, 2 * HOUR_S)
    judging.round()
    job = cloud.get(f"/v1/jobs/{job_id}", "admin:ops").json["job"]
    assert job["finished_at"] is None, "the agent has only not spoken since"
    monkeypatch.setattr(judging, "_judges", True)
    judging.round()
    job = cloud.get(f"/v1/jobs/{job_id}", "admin:ops").json["job"]
    assert job["reason_code"] == "agent_unavailable", "nor has it spoken when all had the time to"
