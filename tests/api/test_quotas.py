# SPDX-License-Identifier: Apache-2.0
"""What one project may ask: jobs, metadata, requests; counted right when many ask at once."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from api_service.quotas import Quotas, Rates
from common.reports import InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, RecordedCasts
from tests.api.memory_images import MemoryImages

MakeCloud = Callable[..., Cloud]


@pytest.fixture
def bounded(database_url: str, images: MemoryImages, casts: RecordedCasts) -> Iterator[MakeCloud]:
    """Make API processes, so to say, with quotas, on one database."""
    with contextlib.ExitStack() as closing:

        def make(**limits: Any) -> Cloud:
            cloud = Cloud(database_url, images, casts, **limits)
            closing.callback(cloud.database.engine.dispose)
            return cloud

        yield make


def instances(cloud: Cloud, count: int, **changes: Any) -> list[InstanceRecord]:
    made = [agent_says.instance(**changes) for _ in range(count)]
    cloud.announce(*made)
    return made


def test_a_job_beyond_the_quota_is_403_and_leaves_nothing(bounded: MakeCloud) -> None:
    cloud = bounded(quotas=Quotas(open_jobs=2))
    one, two, three = instances(cloud, 3)
    first = cloud.snapshot(one.uuid).json["image_id"]
    assert cloud.snapshot(two.uuid).status_code == 202
    reply = cloud.snapshot(three.uuid)
    assert reply.status_code == 403
    assert "may have 2" in reply.json["forbidden"]["message"]
    assert cloud.task_state(three.uuid) is None
    assert len(cloud.images.created) == 2

    cloud.ledger.cancel(str(cloud.job_of(first)["id"]))
    assert cloud.snapshot(three.uuid).status_code == 202, "one has ended"


def test_another_project_and_changes_of_power_are_not_counted(bounded: MakeCloud) -> None:
    cloud = bounded(quotas=Quotas(open_jobs=1))
    busy, running = instances(cloud, 2)
    (theirs,) = instances(cloud, 1, project_id="p-other")
    cloud.announce(busy, running, theirs)
    assert cloud.snapshot(busy.uuid).status_code == 202
    assert cloud.act(running.uuid, {"os-stop": None}).status_code == 202
    assert cloud.snapshot(theirs.uuid, who="eve:p-other").status_code == 202


def test_no_quota_is_no_limit(bounded: MakeCloud) -> None:
    cloud = bounded(quotas=Quotas(open_jobs=None))
    assert {cloud.snapshot(one.uuid).status_code for one in instances(cloud, 5)} == {202}


def test_of_many_that_want_the_last_places_no_more_get_them(bounded: MakeCloud) -> None:
    """On different instances, of two processes: nothing but the quota stands between them."""
    clouds = [bounded(quotas=Quotas(open_jobs=3)) for _ in range(2)]
    wanted = instances(clouds[0], 12)
    start = threading.Barrier(len(wanted))

    def ask(number: int) -> int:
        start.wait(20)
        status: int = clouds[number % 2].snapshot(wanted[number].uuid).status_code
        return status

    with ThreadPoolExecutor(len(wanted)) as pool:
        statuses = Counter(pool.map(ask, range(len(wanted))))
    assert statuses == {202: 3, 403: 9}


@pytest.mark.parametrize("version", ["2.1", "2.38", "2.39", "2.96"])
def test_metadata_beyond_the_quota_is_403_in_novas_words(bounded: MakeCloud, version: str) -> None:
    cloud = bounded(quotas=Quotas(image_metadata_items=3))
    (instance,) = instances(cloud, 1)

    def ask(items: int) -> Any:
        metadata = {f"key{number}": "v" for number in range(items)}
        body = {"createImage": {"name": "n", "metadata": metadata}}
        return cloud.act(instance.uuid, body, version=version)

    reply = ask(4)
    assert reply.status_code == 403
    assert reply.json["forbidden"]["message"] == "Image metadata limit exceeded"
    assert cloud.images.created == []
    assert ask(3).status_code == 202


def test_requests_beyond_the_rate_are_429_and_told_when_to_come_again(bounded: MakeCloud) -> None:
    cloud = bounded(rates=Rates(0.1))  # one, and the next in ten seconds
    assert cloud.get("/v2.1/servers").status_code == 200
    reply = cloud.get("/v2.1/servers")
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) > 0
    assert reply.json["overLimit"]["code"] == 429
    assert reply.json["overLimit"]["retryAfter"] == reply.headers["retry-after"]
    assert cloud.get("/v2.1/servers", "eve:p-other").status_code == 200, "counts for itself"
    for _ in range(3):
        assert cloud.get("/healthcheck", None).status_code == 200, "nobody's"
        assert cloud.get("/v2.1/servers", None).status_code == 401


def test_by_default_nobody_is_slowed_down(cloud: Cloud) -> None:
    assert {cloud.get("/v2.1/servers").status_code for _ in range(50)} == {200}
