# SPDX-License-Identifier: Apache-2.0
"""Heartbeats: which instances exist, where, and which agents live."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from typing import Any

import pytest

from api_service import manage
from api_service.errors import Conflict, NotFound
from common import clock
from common.broker import BrokerReport
from common.reports import InstanceRecord
from common.states import PowerState
from tests.api import agents as agent_says
from tests.api.clouds import DOWN_AFTER_S, Cloud


def listed(cloud: Cloud) -> set[str]:
    """Return the names of all servers."""
    reply = cloud.get("/v2.1/servers?all_tenants=1", "admin:ops")
    return {server["name"] for server in reply.json["servers"]}


def test_a_complete_list_replaces_what_was_known(cloud: Cloud) -> None:
    stays, goes = agent_says.instance(name="stays"), agent_says.instance(name="goes")
    cloud.announce(stays, goes)
    cloud.announce(stays, agent_says.instance(name="comes"))
    assert listed(cloud) == {"stays", "comes"}
    assert cloud.get(f"/v2.1/servers/{goes.uuid}").status_code == 404


def test_one_that_comes_back_is_there_again(cloud: Cloud, instance: InstanceRecord) -> None:
    cloud.announce()
    assert listed(cloud) == set()
    cloud.announce(instance)
    assert listed(cloud) == {"web"}


def test_a_host_says_nothing_about_anothers_instances(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.announce(agent_says.instance(name="far"), host="compute-2")
    cloud.announce(host="compute-2")
    assert listed(cloud) == {"web"}


def test_a_heartbeat_without_a_list_changes_no_instance(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.announce(complete=False)
    assert listed(cloud) == {"web"}


def test_an_instance_that_moved_belongs_to_the_host_that_saw_it_last(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.announce(instance, host="compute-2")
    assert cloud.server(instance.uuid)["OS-EXT-SRV-ATTR:host"] == "compute-2"
    cloud.announce()
    assert cloud.server(instance.uuid)["OS-EXT-SRV-ATTR:host"] == "compute-2"


def test_an_older_report_that_comes_later_moves_nothing_back(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    before = clock.epoch_s() - 30
    cloud.announce(instance, host="compute-2", at=clock.epoch_s())
    cloud.announce(instance, at=before)
    assert cloud.server(instance.uuid)["OS-EXT-SRV-ATTR:host"] == "compute-2"


def test_an_older_list_that_comes_later_removes_nothing(cloud: Cloud) -> None:
    """A report from before the instance was made, overtaken on the way."""
    now = clock.epoch_s()
    instance = agent_says.instance()
    cloud.announce(instance, at=now)
    cloud.announce(at=now - 30)
    assert listed(cloud) == {"web"}


def test_a_clock_that_runs_ahead_hides_no_instance_that_moved(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.announce(instance, at=clock.epoch_s() + 3600)
    cloud.announce(instance, host="compute-2")
    cloud.announce(at=clock.epoch_s() + 3660)
    assert cloud.server(instance.uuid)["OS-EXT-SRV-ATTR:host"] == "compute-2"
    cloud.announce(host="compute-2")
    assert listed(cloud) == set()


def test_a_report_never_touches_the_task_state(cloud: Cloud, instance: InstanceRecord) -> None:
    cloud.snapshot(instance.uuid)
    cloud.announce(dataclasses.replace(instance, name="renamed"))
    body = cloud.server(instance.uuid)
    assert (body["name"], body["OS-EXT-STS:task_state"]) == ("renamed", "image_snapshot_pending")


def test_the_pause_of_a_job_is_not_shown_as_the_users(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    """A snapshot pauses for milliseconds; a report from just then would stand for a minute."""
    cloud.snapshot(instance.uuid)
    cloud.announce(dataclasses.replace(instance, power_state=PowerState.PAUSED))
    assert cloud.server(instance.uuid)["status"] == "ACTIVE"
    cloud.announce(dataclasses.replace(instance, power_state=PowerState.SHUTDOWN))
    assert cloud.server(instance.uuid)["status"] == "SHUTOFF"


def test_an_agent_that_is_silent_is_down(cloud: Cloud, instance: InstanceRecord) -> None:
    (up,) = cloud.get("/v2.1/os-services", "admin:ops").json["services"]
    assert up["state"] == "up"
    assert cloud.server(instance.uuid)["host_status"] == "UP"
    cloud.agents._down_after *= 0
    (down,) = cloud.get("/v2.1/os-services", "admin:ops").json["services"]
    assert down["state"] == "down"
    assert cloud.server(instance.uuid)["host_status"] != "UP"


def test_a_host_that_is_gone_for_good_is_forgotten_with_its_instances(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    cloud.announce(agent_says.instance(name="far"), host="compute-2")
    host = cloud.server(instance.uuid)["OS-EXT-SRV-ATTR:host"]
    with pytest.raises(NotFound, match="ever heard of"):
        cloud.agents.forget("nowhere")
    with pytest.raises(Conflict, match="is up"):
        cloud.agents.forget(host)
    down_after, cloud.agents._down_after = cloud.agents._down_after, dt.timedelta(0)
    assert cloud.agents.forget(host) == 1
    cloud.agents._down_after = down_after
    assert listed(cloud) == {"far"}
    (left,) = cloud.get("/v2.1/os-services", "admin:ops").json["services"]
    assert left["host"] == "compute-2"
    cloud.announce(instance)
    assert listed(cloud) == {"far", "web"}, "it was not gone, after all"


@pytest.mark.parametrize("hosts", [[], ["compute-1", "compute-2"]])
def test_broker_check_looks_at_the_queues_of_the_agents_that_there_are(
    cloud: Cloud,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hosts: list[str],
) -> None:
    """The guide has it run before the first hypervisor is there."""
    report = BrokerReport(
        server="b", version="4", connect_ms=1, may_declare=True, is_blocked=False, queues=()
    )
    looked: list[list[str]] = []
    monkeypatch.setattr(manage, "make_database", lambda _settings: cloud.database)
    monkeypatch.setattr(
        manage, "check_broker", lambda _settings, agents: looked.append(agents) or report
    )
    for agent in cloud.agents.all():
        cloud.inventory.forget_host(agent.host)
    for host in hosts:
        cloud.announce(host=host)
    settings: Any = None
    assert manage.broker_check(settings) == 0
    assert looked == [hosts]
    assert ("No compute agent has been heard of" in capsys.readouterr().out) is (not hosts)


def test_a_heartbeat_that_waited_in_the_queue_does_not_raise_the_dead(cloud: Cloud) -> None:
    """The API was stopped, the agent died meanwhile; its old heartbeats are delivered now."""
    record = agent_says.instance()
    cloud.announce(record, at=clock.epoch_s() - 10 * DOWN_AFTER_S)
    (service,) = cloud.get("/v2.1/os-services", "admin:ops").json["services"]
    assert service["state"] == "down"
    assert cloud.snapshot(record.uuid).status_code == 409


def test_a_thousand_instances_come_in_one_report(cloud: Cloud) -> None:
    records = [agent_says.instance(name=f"s{number}") for number in range(1000)]
    cloud.announce(*records)
    cloud.announce(*records[:10])
    assert len(listed(cloud)) == 10


def test_of_two_agents_with_one_host_name_the_one_that_lives_is_heard(cloud: Cloud) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    mine, theirs = agent_says.instance(name="mine"), agent_says.instance(name="theirs")

    def says(agent_id: str | None, *instances: InstanceRecord, ago_s: float = 0) -> Any:
        at = clock.epoch_s() - ago_s
        beat = agent_says.heartbeat(*instances, agent_id=agent_id, at=at)
        return cloud.report("host_report", beat)

    assert says(first, mine, ago_s=DOWN_AFTER_S / 2) == {"taken": True, "reason": None}
    refusal = says(second, theirs)
    assert refusal["taken"] is False
    assert "another compute agent reports as host" in refusal["reason"]
    assert listed(cloud) == {"mine"}
    assert says(first, mine)["taken"] is True, "nor is the first one disturbed"
    assert says(None, mine)["taken"] is True, "an agent of an older release names no id"


def test_a_host_name_is_free_again_when_its_agent_counts_as_down(cloud: Cloud) -> None:
    long_ago = clock.epoch_s() - 2 * DOWN_AFTER_S
    beat = agent_says.heartbeat(agent_id=str(uuid.uuid4()), at=long_ago)
    cloud.report("host_report", beat)
    heir = agent_says.heartbeat(agent_id=str(uuid.uuid4()))
    assert cloud.report("host_report", heir)["taken"] is True
