# SPDX-License-Identifier: Apache-2.0
"""What was done to a server: page by page, since when, and when it is gone."""

from __future__ import annotations

import urllib.parse
from typing import Any

import pytest

from common import clock
from common.reports import InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.test_create_image import message_of

DEMO, OTHER, ADMIN = "demo:p-demo", "eve:p-other", "admin:ops"


@pytest.fixture
def ids(cloud: Cloud, instance: InstanceRecord) -> list[str]:
    """The requests of three snapshots, newest first."""
    made: list[str] = []
    for _ in range(3):
        made.insert(0, cloud.snapshot(instance.uuid).headers["x-compute-request-id"])
        cast = cloud.casts.next()
        outcome = agent_says.finished(cast["job_id"], instance.uuid, cast["image_id"])
        cloud.report("job_finished", outcome)
    return made


def listed(reply: Any) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [action["request_id"] for action in reply.json["instanceActions"]]


def test_pages_hold_each_action_once_newest_first(
    cloud: Cloud, instance: InstanceRecord, ids: list[str]
) -> None:
    url: str | None = f"/v2.1/servers/{instance.uuid}/os-instance-actions?limit=2"
    seen: list[str] = []
    while url is not None:
        reply = cloud.get(url)
        seen += listed(reply)
        links = reply.json.get("links", [])
        url = links[0]["href"].removeprefix("http://falconframework.org") if links else None
    assert seen == ids


def test_before_2_58_there_are_no_pages(
    cloud: Cloud, instance: InstanceRecord, ids: list[str]
) -> None:
    url = f"/v2.1/servers/{instance.uuid}/os-instance-actions"
    reply = cloud.get(f"{url}?limit=1&marker=x&changes-since=x", version="2.57")
    assert (listed(reply), "links" in reply.json) == (ids, False)
    assert listed(cloud.get(f"{url}?limit=1", version="2.58")) == ids[:1]
    assert listed(cloud.get(f"{url}?limit=0")) == []


@pytest.mark.parametrize(
    "query",
    ["limit=x", "marker=req-none", "changes-since=x", "changes-before=x", "colour=red"],
)
def test_nonsense_is_400(cloud: Cloud, instance: InstanceRecord, query: str) -> None:
    url = f"/v2.1/servers/{instance.uuid}/os-instance-actions?{query}"
    message_of(cloud.get(url), 400)


def test_times_narrow_down(cloud: Cloud, instance: InstanceRecord, ids: list[str]) -> None:
    url = f"/v2.1/servers/{instance.uuid}/os-instance-actions"
    now = urllib.parse.quote(clock.now().isoformat())
    old = "2000-01-01T00:00:00Z"
    assert listed(cloud.get(f"{url}?changes-since={old}")) == ids
    assert listed(cloud.get(f"{url}?changes-since={now}")) == []
    assert listed(cloud.get(f"{url}?changes-before={now}")) == ids
    assert listed(cloud.get(f"{url}?changes-before={old}")) == []
    assert listed(cloud.get(f"{url}?changes-before={old}", version="2.65")) == ids
    message_of(cloud.get(f"{url}?changes-since={now}&changes-before={old}"), 400)


def test_what_was_done_to_a_server_that_is_gone_is_told_since_2_21(
    cloud: Cloud, instance: InstanceRecord, ids: list[str]
) -> None:
    cloud.announce()
    url = f"/v2.1/servers/{instance.uuid}/os-instance-actions"
    assert listed(cloud.get(url, version="2.21")) == ids
    assert cloud.get(f"{url}/{ids[0]}", version="2.21").status_code == 200
    message_of(cloud.get(url, version="2.20"), 404)
    message_of(cloud.get(url, OTHER), 404)


def test_events_are_shown_to_all_whose_server_it_is(
    cloud: Cloud, instance: InstanceRecord, ids: list[str]
) -> None:
    """Without them `openstack server event show` ends in a traceback of its own."""
    url = f"/v2.1/servers/{instance.uuid}/os-instance-actions/{ids[0]}"
    for who, version in ((DEMO, "2.1"), (DEMO, "2.51"), (ADMIN, "2.1")):
        events = cloud.get(url, who, version).json["instanceAction"]["events"]
        assert all(("traceback" in event) is (who == ADMIN) for event in events)
        assert all("host" not in event for event in events)


def test_a_job_that_another_service_cast_has_an_id_too(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    job_id, image_id = (
        "5e0d1c9e-7f3b-4e4b-9d0c-1f4f6f8a2b11",
        "0b8f1f9c-2a54-4f6e-8e59-4f3f3c1b7a22",
    )
    cloud.report("job_accepted", agent_says.accepted(job_id, instance.uuid, image_id))
    url = f"/v2.1/servers/{instance.uuid}/os-instance-actions"
    (request_id,) = listed(cloud.get(url))
    assert cloud.get(f"{url}/{request_id}").status_code == 200
    assert listed(cloud.get(f"{url}?marker={request_id}")) == []
