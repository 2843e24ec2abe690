# SPDX-License-Identifier: Apache-2.0
"""Lists of servers in any order, page by page, and lists of what has changed or is gone."""

from __future__ import annotations

import datetime as dt
import urllib.parse
from typing import Any

import pytest

from api_service.store.overrides import Overrides
from common import clock
from common.reports import Flavor, InstanceRecord
from common.states import PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud

ADMIN = "admin:ops"


def names(reply: Any) -> list[str]:
    """Return the names in a list of servers, in order."""
    assert reply.status_code == 200, reply.text
    return [server["name"] for server in reply.json["servers"]]


def all_pages(cloud: Cloud, query: str, who: str = "demo:p-demo") -> list[str]:
    """Return the names of all pages, in order."""
    seen: list[str] = []
    url: str | None = f"/v2.1/servers?{query}"
    while url is not None:
        reply = cloud.get(url, who)
        seen += names(reply)
        links = reply.json.get("servers_links", [])
        url = links[0]["href"].removeprefix("http://falconframework.org") if links else None
    return seen


@pytest.fixture
def five(cloud: Cloud) -> list[InstanceRecord]:
    """Five servers, d and e of one moment."""
    made = [
        agent_says.instance(name="b", created_at=5000.0, power_state=PowerState.SHUTDOWN),
        agent_says.instance(name="a", created_at=4000.0),
        agent_says.instance(name="c", created_at=3000.0, power_state=PowerState.SHUTDOWN),
        agent_says.instance(name="e", created_at=2000.0, image_ref=None),
        agent_says.instance(name="d", created_at=2000.0, image_ref=None),
    ]
    cloud.announce(*made)
    Overrides(cloud.database).describe(made[1].uuid, {"description": "first"})
    return made


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("sort_key=display_name&sort_dir=asc", "abcde"),
        ("sort_key=display_name", "edcba"),
        ("sort_key=vm_state&sort_key=display_name&sort_dir=desc&sort_dir=asc", "bcade"),
        ("sort_key=vm_state&sort_key=display_name&sort_dir=asc", "adebc"),
        ("sort_key=power_state&sort_key=created_at&sort_dir=desc&sort_dir=asc", "cbdea"),
        # What is alike in all, or was never a key of Nova's, leaves Nova's own order.
        ("sort_key=key_name", "bac"),
        # Nothing comes first, whatever the database.
        ("sort_key=display_description&sort_key=display_name&sort_dir=asc", "bcdea"),
        ("sort_key=display_description", "a"),
        ("sort_key=terminated_at&sort_key=display_name&sort_dir=asc", "decab"),
        ("sort_dir=asc", ""),
    ],
)
def test_pages_in_any_order_hold_each_server_once(
    cloud: Cloud, five: list[InstanceRecord], query: str, found: str
) -> None:
    paged = "".join(all_pages(cloud, f"limit=2&{query}"))
    whole = "".join(names(cloud.get(f"/v2.1/servers?{query}")))
    if "created_at" in query and len(found) == 5:
        # Of one moment: in either order, as long as it is the same one.
        paged, whole = paged.replace("ed", "de"), whole.replace("ed", "de")
    assert paged == whole
    assert sorted(paged) == list("abcde")
    assert paged.startswith(found)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("sort_key=colour", 400),
        ("sort_key=display_name&sort_dir=up", 400),
        ("sort_key=display_name&sort_dir=asc&sort_dir=asc", 400),
        ("sort_key=host", 403),
        ("sort_key=node", 403),
        ("sort_key=vcpus", 400),
        ("sort_key=locked", 200),
    ],
)
def test_orders_that_are_not_ones_own_are_refused(
    cloud: Cloud, five: list[InstanceRecord], query: str, status: int
) -> None:
    assert cloud.get(f"/v2.1/servers?{query}").status_code == status
    if status == 403:
        assert cloud.get(f"/v2.1/servers?{query}", ADMIN).status_code == 200


def test_old_keys_are_ignored_until_2_75(cloud: Cloud, five: list[InstanceRecord]) -> None:
    assert len(names(cloud.get("/v2.1/servers?sort_key=vcpus", version="2.74"))) == 5
    assert len(names(cloud.get("/v2.1/servers?sort_key=locked", version="2.72"))) == 5


def test_what_has_changed_is_told_with_what_is_gone(
    cloud: Cloud, five: list[InstanceRecord]
) -> None:
    before: dt.datetime = clock.now()
    cloud.announce(*five[:4])
    since = urllib.parse.quote(before.isoformat())
    (gone,) = cloud.get(f"/v2.1/servers/detail?changes-since={since}").json["servers"]
    assert (gone["name"], gone["status"]) == ("d", "DELETED")
    assert (gone["OS-EXT-STS:vm_state"], gone["OS-EXT-STS:power_state"]) == ("deleted", 0)
    assert gone["OS-SRV-USG:terminated_at"] is not None
    assert cloud.get(f"/v2.1/servers/{gone['id']}").status_code == 404
    assert sorted(names(cloud.get("/v2.1/servers"))) == list("abce")
    until = cloud.get(f"/v2.1/servers?changes-before={since}")
    assert sorted(names(until)) == list("abce")
    both = cloud.get(f"/v2.1/servers?changes-since={since}&changes-before={since}")
    assert names(both) == []
    with_status = cloud.get(f"/v2.1/servers?changes-since={since}&status=ACTIVE")
    assert names(with_status) == []
    # The last server of a page may be gone when the next is asked for.
    assert cloud.get(f"/v2.1/servers?marker={five[4].uuid}").status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "changes-since=yesterday",
        "changes-before=0000",
        "changes-since=9999-12-31T23:59:59-14:00",
        "changes-since=2026-01-02T00:00:00Z&changes-before=2026-01-01T00:00:00Z",
    ],
)
def test_times_that_make_no_sense_are_400(cloud: Cloud, query: str) -> None:
    assert cloud.get(f"/v2.1/servers?{query}").status_code == 400


def test_changes_before_is_unknown_before_2_66(cloud: Cloud, five: list[InstanceRecord]) -> None:
    url = "/v2.1/servers?changes-before=2000-01-01T00:00:00Z"
    assert len(names(cloud.get(url, version="2.65"))) == 5
    assert names(cloud.get(url, version="2.66")) == []


def test_who_may_list_what_is_gone(cloud: Cloud, five: list[InstanceRecord]) -> None:
    cloud.announce(*five[:4])
    every = "/v2.1/servers?all_tenants=1"
    for query in ("deleted=True", "status=deleted", "vm_state=deleted"):
        assert names(cloud.get(f"{every}&{query}", ADMIN)) == ["d"]
    for query in ("deleted=False", "deleted=perhaps"):
        assert sorted(names(cloud.get(f"{every}&{query}", ADMIN))) == list("abce")
    assert sorted(names(cloud.get("/v2.1/servers?deleted=True"))) == list("abce")
    assert cloud.get("/v2.1/servers?status=deleted").status_code == 403
    assert cloud.get("/v2.1/servers?vm_state=deleted").status_code == 403
    assert sorted(names(cloud.get("/v2.1/servers?vm_state=deleted", version="2.82"))) == (
        list("abce")
    )


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("flavor=big", "x"),
        ("flavor=none", ""),
        ("power_state=4", "x"),
        ("progress=0", "xy"),
        ("ip=10.0.0.1", ""),
        ("ip6=::1", ""),
        ("tags=red", ""),
        ("tags-any=red", ""),
        ("not-tags=red", "xy"),
        ("availability_zone=nova", "xy"),
        ("availability_zone=other", ""),
        ("key_name=mine", ""),
        ("config_drive=True", ""),
        ("config_drive=False", "xy"),
        ("created_at=1970-01-01T01:00:00Z", "x"),
        ("created_at=1970-01-01T01:00:02", ""),
    ],
)
def test_every_filter_of_a_member_filters(cloud: Cloud, query: str, found: str) -> None:
    big = Flavor(name="big", vcpus=8, memory_mib=1, disk_gib=1)
    cloud.announce(
        agent_says.instance(
            name="x", flavor=big, power_state=PowerState.SHUTDOWN, created_at=3600.5
        ),
        agent_says.instance(name="y"),
    )
    assert sorted(names(cloud.get(f"/v2.1/servers?{query}"))) == list(found)


def test_an_image_narrows_down(cloud: Cloud, instance: InstanceRecord) -> None:
    assert names(cloud.get(f"/v2.1/servers?image={instance.image_ref}")) == ["web"]
    assert names(cloud.get("/v2.1/servers?image=none")) == []


def test_an_administrators_patterns_match_what_users_wrote(
    cloud: Cloud, five: list[InstanceRecord]
) -> None:
    every = "/v2.1/servers?all_tenants=1"
    assert names(cloud.get(f"{every}&description=^fir", ADMIN)) == ["a"]
    assert names(cloud.get(f"{every}&display_name=[ab]&sort_key=uuid", ADMIN)) != []
    assert cloud.get(f"{every}&description=*", ADMIN).status_code == 400
    assert len(names(cloud.get("/v2.1/servers?description=^fir"))) == 5
    Overrides(cloud.database).describe(five[1].uuid, {"hostname": "zoo"})
    assert names(cloud.get(f"{every}&hostname=^zoo$", ADMIN)) == ["a"]
    assert names(cloud.get(f"{every}&hostname=^b$", ADMIN)) == ["b"]
    by_host_name = "sort_key=hostname&sort_dir=asc"
    assert all_pages(cloud, f"limit=2&{by_host_name}") == list("bcdea")
