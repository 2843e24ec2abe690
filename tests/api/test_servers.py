# SPDX-License-Identifier: Apache-2.0
"""Lists and single servers: what is in them, page by page, and for whom."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from api_service.policies import Authorizer
from common.reports import InstanceRecord
from common.states import PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud


def names(reply: Any) -> list[str]:
    """Return the names in a list of servers."""
    assert reply.status_code == 200, reply.text
    return [server["name"] for server in reply.json["servers"]]


def test_a_list_holds_the_projects_own_instances_only(cloud: Cloud) -> None:
    cloud.announce(
        agent_says.instance(name="mine"), agent_says.instance(name="theirs", project_id="p-other")
    )
    assert names(cloud.get("/v2.1/servers")) == ["mine"]
    assert names(cloud.get("/v2.1/servers/detail")) == ["mine"]
    assert names(cloud.get("/v2.1/servers", "eve:p-other")) == ["theirs"]


def test_all_tenants_is_for_the_administrator(cloud: Cloud) -> None:
    cloud.announce(
        agent_says.instance(name="a"), agent_says.instance(name="b", project_id="p-other")
    )
    assert sorted(names(cloud.get("/v2.1/servers?all_tenants=True", "admin:ops"))) == ["a", "b"]
    assert cloud.get("/v2.1/servers?all_tenants=1").status_code == 403


def test_another_projects_server_does_not_exist(cloud: Cloud, instance: InstanceRecord) -> None:
    """404, not 403: that it exists is not the caller's business."""
    reply = cloud.get(f"/v2.1/servers/{instance.uuid}", "eve:p-other")
    assert reply.status_code == 404
    missing = str(uuid.uuid4())
    unknown = cloud.get(f"/v2.1/servers/{missing}", "eve:p-other")
    assert reply.text.replace(instance.uuid, missing) == unknown.text


def test_the_administrator_sees_every_server(cloud: Cloud, instance: InstanceRecord) -> None:
    assert cloud.get(f"/v2.1/servers/{instance.uuid}", "admin:ops").status_code == 200


@pytest.mark.parametrize("given", ["web", "not-a-uuid", "%00", "x" * 300, "%F0%9F%92%BE"])
def test_a_name_where_an_id_belongs_is_404(
    cloud: Cloud, instance: InstanceRecord, given: str
) -> None:
    """The CLI tries the name as an id first, and lists when it gets 404."""
    reply = cloud.get(f"/v2.1/servers/{given}")
    assert reply.status_code == 404
    assert "itemNotFound" in reply.json


def test_a_server_shows_what_the_agent_announced(cloud: Cloud, instance: InstanceRecord) -> None:
    body = cloud.server(instance.uuid)
    assert body["name"] == "web"
    assert (body["status"], body["OS-EXT-STS:vm_state"]) == ("ACTIVE", "active")
    assert body["OS-EXT-STS:power_state"] == 1
    assert (body["tenant_id"], body["user_id"]) == (agent_says.PROJECT, agent_says.USER)
    assert body["image"]["id"] == instance.image_ref
    assert body["flavor"]["original_name"] == "m1.tiny"
    assert body["OS-EXT-SRV-ATTR:host"] == agent_says.HOST
    assert body["OS-EXT-SRV-ATTR:instance_name"] == "instance-00000001"
    assert body["OS-EXT-STS:task_state"] is None


def test_a_tenant_sees_no_host(cloud: Cloud, instance: InstanceRecord) -> None:
    reply = cloud.get(f"/v2.1/servers/{instance.uuid}")
    assert agent_says.HOST not in reply.text
    hidden = {"OS-EXT-SRV-ATTR:host", "OS-EXT-SRV-ATTR:instance_name", "host_status"}
    assert not hidden & set(reply.json["server"])


def test_the_policy_decides_who_sees_hosts(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, allows = "os_compute_api:os-extended-server-attributes", Authorizer.allows
    for answer in (True, False):

        def allow(
            self: Authorizer, caller: Any, asked: str, *more: Any, answer: bool = answer
        ) -> bool:
            return answer if asked == rule else allows(self, caller, asked, *more)

        monkeypatch.setattr(Authorizer, "allows", allow)
        for who in ("demo:p-demo", "admin:ops"):
            body = cloud.get(f"/v2.1/servers/{instance.uuid}", who, "2.89").json["server"]
            assert ("OS-EXT-SRV-ATTR:host" in body) is answer
            assert ("OS-EXT-SRV-ATTR:hostname" in body) is answer


@pytest.mark.parametrize(
    ("power_state", "status"),
    [
        (PowerState.RUNNING, "ACTIVE"),
        (PowerState.SHUTDOWN, "SHUTOFF"),
        (PowerState.PAUSED, "PAUSED"),
        (PowerState.SUSPENDED, "SUSPENDED"),
        (PowerState.CRASHED, "ERROR"),
    ],
)
def test_a_status_is_novas_word_for_the_power_state(
    cloud: Cloud, power_state: PowerState, status: str
) -> None:
    record = agent_says.instance(power_state=power_state)
    cloud.announce(record)
    assert cloud.server(record.uuid)["status"] == status
    assert names(cloud.get(f"/v2.1/servers?status={status.lower()}")) == ["web"]
    others = {"ACTIVE", "SHUTOFF"} - {status}
    assert names(cloud.get(f"/v2.1/servers?status={others.pop()}")) == []


def test_pages_hold_each_server_once_newest_first(cloud: Cloud) -> None:
    """Also where many were created in one moment."""
    records = [
        agent_says.instance(name=f"s{number}", created_at=1_700_000_000.0 + number // 3)
        for number in range(10)
    ]
    cloud.announce(*records)
    seen: list[str] = []
    url: str | None = "/v2.1/servers/detail?limit=3"
    while url is not None:
        reply = cloud.get(url)
        assert len(reply.json["servers"]) <= 3
        created = [server["created"] for server in reply.json["servers"]]
        assert created == sorted(created, reverse=True)
        seen += names(reply)
        links = reply.json.get("servers_links", [])
        url = links[0]["href"].removeprefix("http://falconframework.org") if links else None
    assert sorted(seen) == sorted(record.name for record in records)


def test_limit_0_gives_no_rows(cloud: Cloud, instance: InstanceRecord) -> None:
    assert names(cloud.get("/v2.1/servers?limit=0")) == []


@pytest.mark.parametrize("query", ["limit=-1", "limit=many", "limit=1e9", "marker=nowhere"])
def test_nonsense_about_pages_is_the_callers_fault(cloud: Cloud, query: str) -> None:
    reply = cloud.get(f"/v2.1/servers?{query}")
    assert reply.status_code == 400
    assert query.split("=")[0] in reply.json["badRequest"]["message"]


def test_another_projects_server_is_no_marker(cloud: Cloud) -> None:
    """Else a marker would tell whether an id exists, and when it was created."""
    theirs = agent_says.instance(project_id="p-other")
    cloud.announce(theirs)
    assert cloud.get(f"/v2.1/servers?marker={theirs.uuid}").status_code == 400


def test_a_name_filter_is_a_regular_expression(cloud: Cloud) -> None:
    cloud.announce(agent_says.instance(name="web-1"), agent_says.instance(name="db-1"))
    assert names(cloud.get("/v2.1/servers?name=^web")) == ["web-1"]
    assert names(cloud.get("/v2.1/servers?name=eb")) == ["web-1"]
    assert sorted(names(cloud.get("/v2.1/servers?name=1"))) == ["db-1", "web-1"]


def test_a_bad_regular_expression_is_the_callers_fault(cloud: Cloud) -> None:
    assert cloud.get("/v2.1/servers?name=%5B").status_code == 400


def test_an_unknown_status_matches_nothing_and_later_is_refused(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    assert names(cloud.get("/v2.1/servers?status=FOO", version="2.37")) == []
    assert cloud.get("/v2.1/servers?status=FOO", version="2.38").status_code == 400


def test_an_unknown_filter_is_ignored_and_later_refused(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    assert names(cloud.get("/v2.1/servers?colour=red", version="2.74")) == ["web"]
    assert cloud.get("/v2.1/servers?colour=red", version="2.75").status_code == 400


def test_what_the_stock_client_sends_is_no_unknown_filter(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    reply = cloud.get("/v2.1/servers/detail?deleted=False&limit=5", version="2.96")
    assert names(reply) == ["web"]


def test_a_members_host_filter_is_ignored(cloud: Cloud, instance: InstanceRecord) -> None:
    assert names(cloud.get("/v2.1/servers?host=elsewhere")) == ["web"]
    assert names(cloud.get("/v2.1/servers?host=elsewhere&all_tenants=1", "admin:ops")) == []


def test_flavors_are_those_of_the_callers_instances(cloud: Cloud, instance: InstanceRecord) -> None:
    (listed,) = cloud.get("/v2.1/flavors/detail").json["flavors"]
    assert (listed["name"], listed["ram"], listed["disk"]) == ("m1.tiny", 512, 2)
    assert cloud.get(f"/v2.1/flavors/{listed['id']}").json["flavor"]["vcpus"] == 1
    assert cloud.get("/v2.1/flavors/none").status_code == 404
    assert cloud.get("/v2.1/flavors", "eve:p-other").json["flavors"] == []


def test_the_flavor_that_a_server_names_can_be_shown(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    body = cloud.get(f"/v2.1/servers/{instance.uuid}", version="2.1").json["server"]
    flavor_id = body["flavor"]["id"]
    assert cloud.get(f"/v2.1/flavors/{flavor_id}").json["flavor"]["name"] == "m1.tiny"


def test_services_are_for_the_administrator(cloud: Cloud, instance: InstanceRecord) -> None:
    assert cloud.get("/v2.1/os-services").status_code == 403
    (service,) = cloud.get("/v2.1/os-services", "admin:ops").json["services"]
    assert (service["host"], service["state"]) == (agent_says.HOST, "up")
