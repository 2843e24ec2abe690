# SPDX-License-Identifier: Apache-2.0
"""Nova's old proxy to Glance: what is in it, and for whom."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from common.glance import ImageServiceUnavailable
from common.reports import InstanceRecord
from tests.api.clouds import Cloud, headers
from tests.api.test_create_image import message_of

DEMO, OTHER, ADMIN = "demo:p-demo", "eve:p-other", "admin:ops"
OLD = "2.35"
MISSING = "7d3c0a52-94c5-4f0d-9a35-0f1f0f3f6a11"


def put(cloud: Cloud, name: str, **record: Any) -> str:
    """Have Glance know an image; return its id."""
    image_id = str(uuid.uuid4())
    given = {"name": name, "owner": "p-demo", "visibility": "private", **record}
    cloud.images.create(image_id, given)
    cloud.images.activate(image_id)
    return image_id


def names(cloud: Cloud, query: str = "", who: str = DEMO) -> list[str]:
    reply = cloud.get(f"/v2.1/images{query}", who, OLD)
    assert reply.status_code == 200, reply.text
    return [image["name"] for image in reply.json["images"]]


def delete(cloud: Cloud, image_id: str, who: str = DEMO) -> Any:
    return cloud.http.simulate_delete(f"/v2.1/images/{image_id}", headers=headers(who, OLD))


@pytest.fixture
def known(cloud: Cloud) -> dict[str, str]:
    """Images of two projects, by name, oldest first."""
    at = "2026-01-0{}T00:00:00Z"
    return {
        "mine": put(cloud, "mine", created_at=at.format(1), updated_at=at.format(9)),
        "theirs": put(cloud, "theirs", owner="p-other", created_at=at.format(2)),
        "public": put(
            cloud, "public", owner="ops", visibility="public", created_at=at.format(3), min_ram=64
        ),
        "shared": put(
            cloud, "shared", owner="ops", visibility="community", created_at=at.format(4)
        ),
    }


def test_a_project_sees_its_own_images_and_the_public_ones(
    cloud: Cloud, known: dict[str, str]
) -> None:
    assert names(cloud) == ["public", "mine"]
    assert names(cloud, who=OTHER) == ["public", "theirs"]
    assert names(cloud, who=ADMIN) == ["shared", "public", "theirs", "mine"]
    statuses = {
        name: cloud.get(f"/v2.1/images/{image_id}", DEMO, OLD).status_code
        for name, image_id in known.items()
    }
    assert statuses == {"mine": 200, "theirs": 404, "public": 200, "shared": 200}


@pytest.mark.parametrize("image_id", ["web", "..", "%3F", "v2%3Fowner=p-other", MISSING])
def test_what_is_no_image_is_404(cloud: Cloud, known: dict[str, str], image_id: str) -> None:
    message_of(cloud.get(f"/v2.1/images/{image_id}", DEMO, OLD), 404)


@pytest.mark.parametrize("image_id", ["web", "%3F", "x%3Fowner=p-other", "..%2Ftasks"])
def test_what_is_no_id_becomes_no_url_of_glances(cloud: Cloud, image_id: str) -> None:
    cloud.images.failure = ImageServiceUnavailable("it was asked")
    assert cloud.get(f"/v2.1/images/{image_id}", DEMO, OLD).status_code == 404


def test_only_the_owner_deletes(cloud: Cloud, known: dict[str, str]) -> None:
    message_of(delete(cloud, known["public"]), 403)
    message_of(delete(cloud, known["theirs"]), 404)
    assert delete(cloud, known["mine"]).status_code == 204
    message_of(delete(cloud, known["mine"]), 404)
    assert delete(cloud, known["theirs"], ADMIN).status_code == 204
    assert cloud.images.deleted == [known["mine"], known["theirs"]]


def test_an_image_of_nobody_is_not_anybodys_to_delete(cloud: Cloud) -> None:
    orphan = put(cloud, "orphan", owner=None, visibility="public")
    message_of(delete(cloud, orphan), 403)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?name=mine", ["mine"]),
        ("?status=active", ["public", "mine"]),
        ("?status=SAVING", []),
        ("?minRam=10", ["public"]),
        ("?changes-since=2026-01-05T00:00:00Z", ["mine"]),
        ("?limit=1", ["public"]),
        ("?limit=0", []),
        ("?type=snapshot", []),
        ("?colour=red", ["public", "mine"]),
        ("?property-os_type=linux", []),
    ],
)
def test_filters_filter(cloud: Cloud, known: dict[str, str], query: str, found: list[str]) -> None:
    assert names(cloud, query) == found


@pytest.mark.parametrize(
    "query", ["limit=-1", "marker=x", "minDisk=big", "changes-since=yesterday"]
)
def test_nonsense_is_400(cloud: Cloud, known: dict[str, str], query: str) -> None:
    message_of(cloud.get(f"/v2.1/images?{query}", DEMO, OLD), 400)


def test_pages_lead_on(cloud: Cloud, known: dict[str, str]) -> None:
    first = cloud.get("/v2.1/images?limit=1", DEMO, OLD).json
    (link,) = first["images_links"]
    second = cloud.get(link["href"].removeprefix("http://falconframework.org"), DEMO, OLD).json
    assert [image["name"] for image in second["images"]] == ["mine"]
    assert "images_links" not in second


def test_a_snapshot_in_the_making_is_found_by_its_server(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    made = cloud.act(instance.uuid, {"createImage": {"name": "s"}}, version=OLD)
    image_id = made.headers["location"].rpartition("/")[2]
    shown = cloud.get(f"/v2.1/images/{image_id}", DEMO, OLD).json["image"]
    assert (shown["status"], shown["server"]["id"]) == ("SAVING", instance.uuid)
    assert shown["metadata"]["image_type"] == "snapshot"
    for given in (instance.uuid, shown["server"]["links"][0]["href"]):
        assert names(cloud, f"?server={given}&type=snapshot") == ["s"]


def test_a_glance_that_is_away_is_503(cloud: Cloud) -> None:
    cloud.images.failure = ImageServiceUnavailable("the image service cannot be reached")
    reply = cloud.get("/v2.1/images", DEMO, OLD)
    assert (reply.status_code, "retry-after" in reply.headers) == (503, True)
