# SPDX-License-Identifier: Apache-2.0
"""Several servers of one request: how many, what they are called, how they are found."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from common.reports import Flavor
from tests.api.clouds import Cloud, RecordedCasts
from tests.api.memory_images import MemoryImages
from tests.api.new_servers import ADMIN, DEMO, OTHER, delete, message_of, post, wish

#: The host of these tests has room for one of these, and for many of the small ones.
LARGE = Flavor(name="large", vcpus=1, memory_mib=9000, disk_gib=1)


def ask(cloud: Cloud, image: str, least: Any, most: Any = None, **more: Any) -> Any:
    return post(cloud, wish(image, min_count=least, max_count=most, **more))


def details(cloud: Cloud, query: str = "", who: str = ADMIN) -> list[dict[str, Any]]:
    """Return the servers of the project, the first one of a request first."""
    query = f"all_tenants=1&{query}" if who == ADMIN else query
    reply = cloud.get(f"/v2.1/servers/detail?sort_key=display_name&sort_dir=asc&{query}", who)
    assert reply.status_code == 200, reply.text
    servers: list[dict[str, Any]] = reply.json["servers"]
    return servers


def names(cloud: Cloud, query: str = "", who: str = ADMIN) -> list[str]:
    return [server["name"] for server in details(cloud, query, who)]


def quota(cloud: Cloud, most: int) -> None:
    object.__setattr__(cloud.services.lifecycle, "most_instances", most)


def test_each_is_made_by_a_job_of_its_own_and_the_answer_shows_the_first(
    cloud: Cloud, image: str
) -> None:
    reply = ask(cloud, image, 3, metadata={"a": "b"})
    assert reply.status_code == 202, reply.text
    servers = details(cloud)
    assert [server["name"] for server in servers] == ["new-1", "new-2", "new-3"]
    assert reply.json["server"]["id"] == servers[0]["id"]
    assert reply.headers["location"] == reply.json["server"]["links"][0]["href"]
    assert "reservation_id" not in reply.json
    assert {server["status"] for server in servers} == {"BUILD"}
    assert {str(server["metadata"]) for server in servers} == {"{'a': 'b'}"}
    casts = [cloud.casts.next() for _ in servers]
    told = sorted((cast["instance"]["name"], cast["instance"]["uuid"]) for cast in casts)
    assert told == [(server["name"], server["id"]) for server in servers]
    assert len({cast["job_id"] for cast in casts}) == 3
    assert cloud.casts.empty()


def test_one_of_them_can_go_and_the_others_stay(cloud: Cloud, image: str) -> None:
    gone = ask(cloud, image, 2).json["server"]["id"]
    assert delete(cloud, gone).status_code == 204
    assert [server["name"] for server in details(cloud) if server["id"] != gone] == ["new-2"]


def test_what_one_request_made_is_found_by_its_reservation(cloud: Cloud, image: str) -> None:
    reply = ask(cloud, image, 2, return_reservation_id=True)
    assert reply.status_code == 202, reply.text
    (reservation,) = reply.json.values()
    assert re.fullmatch(r"r-[a-z0-9]{8}", reply.json["reservation_id"])
    assert "location" not in reply.headers
    assert ask(cloud, image, 1, name="alone").status_code == 202
    found = details(cloud, f"reservation_id={reservation}")
    assert [server["name"] for server in found] == ["new-1", "new-2"]
    shown = [server["OS-EXT-SRV-ATTR:reservation_id"] for server in found]
    assert shown == [reservation] * 2
    assert [server["OS-EXT-SRV-ATTR:launch_index"] for server in found] == [0, 1]
    assert names(cloud, f"reservation_id={reservation}", DEMO) == ["new-1", "new-2"]
    assert names(cloud, f"reservation_id={reservation}", OTHER) == []
    assert names(cloud, "reservation_id=r-00000000") == []
    assert names(cloud, "launch_index=1") == ["new-2"]
    (alone,) = details(cloud, "name=alone")
    assert alone["OS-EXT-SRV-ATTR:reservation_id"] not in ("", reservation)


def test_an_announced_one_has_no_reservation(cloud: Cloud, instance: Any) -> None:
    (server,) = details(cloud)
    assert server["OS-EXT-SRV-ATTR:reservation_id"] == ""
    assert server["OS-EXT-SRV-ATTR:launch_index"] == 0
    assert names(cloud, "reservation_id=") == [server["name"]]


@pytest.mark.parametrize(
    ("least", "most", "made"),
    [
        (None, 2, ["new-1", "new-2"]),
        ("2", None, ["new-1", "new-2"]),
        ("1", "3", ["new-1", "new-2", "new-3"]),
        (1, None, ["new"]),
        (1, 1, ["new"]),
    ],
)
def test_the_least_is_one_and_the_most_is_the_least(
    cloud: Cloud, image: str, least: Any, most: Any, made: list[str]
) -> None:
    assert ask(cloud, image, least, most).status_code == 202
    assert names(cloud) == made


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"min_count": 3, "max_count": 2}, "min_count must be <= max_count"),
        ({"min_count": 0}, "min_count"),
        ({"min_count": "0"}, "min_count"),
        ({"min_count": "two"}, "min_count"),
        ({"min_count": -1}, "min_count"),
        ({"max_count": 1.5}, "max_count"),
        ({"max_count": ""}, "max_count"),
        ({"min_count": 101}, "at most 100"),
        ({"min_count": 10**30}, "at most 100"),
        ({"max_count": 2, "hostname": "web"}, "Unable to allocate a single hostname"),
        ({"return_reservation_id": "maybe"}, "return_reservation_id"),
    ],
    ids=str,
)
def test_counts_that_make_no_sense_are_400(
    cloud: Cloud, image: str, more: dict[str, Any], words: str
) -> None:
    reply = post(cloud, wish(image, **more))
    assert (reply.status_code, words in message_of(reply)) == (400, True), reply.text
    assert details(cloud) == []


def test_a_long_name_still_tells_them_apart(cloud: Cloud, image: str) -> None:
    assert ask(cloud, image, 2, name="x" * 255).status_code == 202
    assert names(cloud) == ["x" * 253 + "-1", "x" * 253 + "-2"]


def test_as_many_are_made_as_the_quota_leaves_and_at_least_the_least(
    cloud: Cloud, image: str
) -> None:
    quota(cloud, 3)
    assert ask(cloud, image, 1, 2).status_code == 202
    refused = ask(cloud, image, 2, 4, name="more")
    assert (refused.status_code, message_of(refused)) == (
        403,
        "Quota exceeded for instances: Requested 2-4, but already used 2 of 3 instances",
    )
    assert names(cloud) == ["new-1", "new-2"]
    assert ask(cloud, image, 1, 4, name="more").status_code == 202
    assert names(cloud) == ["more", "new-1", "new-2"], "one is called as was asked"
    assert ask(cloud, image, 1).status_code == 403


def test_as_many_are_made_as_there_is_room_for_and_at_least_the_least(
    cloud: Cloud, image: str
) -> None:
    cloud.flavors["large"] = LARGE
    cloud.announce(host="compute-2")
    refused = ask(cloud, image, 3, flavorRef="large")
    assert (refused.status_code, "Ask for fewer" in message_of(refused)) == (409, True)
    assert details(cloud) == []
    assert ask(cloud, image, 1, 5, flavorRef="large").status_code == 202
    hosts = [server["OS-EXT-SRV-ATTR:host"] for server in details(cloud)]
    assert sorted(hosts) == ["compute-1", "compute-2"]
    assert {server["status"] for server in details(cloud)} == {"BUILD"}


def test_several_are_spread_over_the_hosts_by_what_each_has_left(cloud: Cloud, image: str) -> None:
    cloud.announce(host="compute-2")
    assert ask(cloud, image, 4).status_code == 202
    hosts = [server["OS-EXT-SRV-ATTR:host"] for server in details(cloud)]
    assert sorted(hosts) == ["compute-1", "compute-1", "compute-2", "compute-2"]


@pytest.fixture
def processes(
    cloud: Cloud, database_url: str, images: MemoryImages, casts: RecordedCasts
) -> Iterator[list[Cloud]]:
    """Two API processes, so to say, on one database."""
    other = Cloud(database_url, images, casts)
    yield [cloud, other]
    other.database.engine.dispose()


def test_of_requests_at_once_none_gets_a_part_of_what_it_must_have(
    processes: list[Cloud], image: str
) -> None:
    for process in processes:
        process.flavors.update(processes[0].flavors)
        quota(process, 5)
    start = threading.Barrier(6)

    def one(number: int) -> int:
        start.wait(20)
        status: int = ask(processes[number % 2], image, 2, name=f"of-{number}").status_code
        return status

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(one, range(6)))
    assert sorted(statuses) == [202, 202, 403, 403, 403, 403]
    won = [number for number, status in enumerate(statuses) if status == 202]
    assert names(processes[0]) == [f"of-{number}-{one}" for number in won for one in (1, 2)]


def test_a_number_that_no_database_keeps_matches_nothing(cloud: Cloud, image: str) -> None:
    assert ask(cloud, image, 1).status_code == 202
    assert details(cloud, "launch_index=0")
    assert details(cloud, "launch_index=999999999999") == []
