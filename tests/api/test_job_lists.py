# SPDX-License-Identifier: Apache-2.0
"""`GET /v1/jobs`: filters, pages, and who sees what; on each kind of database."""

from __future__ import annotations

import datetime as dt
import urllib.parse
import uuid
from typing import Any

import pytest

from api_service.store.models import JobRow
from common import clock
from common.reports import InstanceRecord
from common.states import JobState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud

ADMIN = "admin:ops"


def listed(cloud: Cloud, query: str = "", who: str = ADMIN) -> list[str]:
    """Return the ids of a list of jobs."""
    reply = cloud.get(f"/v1/jobs{query}", who)
    assert reply.status_code == 200, reply.text
    return [job["id"] for job in reply.json["jobs"]]


def refused(cloud: Cloud, query: str, status: int, who: str = "demo:p-demo") -> str:
    reply = cloud.get(f"/v1/jobs{query}", who)
    assert reply.status_code == status, reply.text
    (fault,) = reply.json.values()
    message: str = fault["message"]
    return message


def snapshot_of(cloud: Cloud, project: str, host: str = agent_says.HOST) -> tuple[str, str]:
    """Return an instance of a project, and a job on it."""
    record = agent_says.instance(project_id=project)
    cloud.announce(record, host=host)
    image_id = cloud.snapshot(record.uuid, who=f"somebody:{project}").json["image_id"]
    return record.uuid, str(cloud.job_of(image_id)["id"])


@pytest.fixture
def jobs(cloud: Cloud) -> dict[str, tuple[str, str]]:
    """An instance and its job: of p-demo on two hosts, and of p-other."""
    return {
        "mine": snapshot_of(cloud, "p-demo"),
        "far": snapshot_of(cloud, "p-demo", "compute-2"),
        "theirs": snapshot_of(cloud, "p-other", "compute-3"),
    }


def test_each_filter_narrows_the_list(cloud: Cloud, jobs: dict[str, tuple[str, str]]) -> None:
    ids = {name: job_id for name, (_, job_id) in jobs.items()}
    instance_uuid, cancelled = jobs["far"]
    cloud.ledger.cancel(cancelled)
    now = urllib.parse.quote(clock.now().isoformat())
    for query, names in {
        "": ["theirs", "far", "mine"],
        f"?instance_uuid={instance_uuid}": ["far"],
        "?project_id=p-other": ["theirs"],
        "?host=compute-1": ["mine"],
        "?state=pending": ["theirs", "mine"],
        "?state=cancelled": ["far"],
        "?state=cancelled&state=pending": ["theirs", "far", "mine"],
        "?kind=snapshot": ["theirs", "far", "mine"],
        "?kind=stop&kind=start": [],
        f"?created_before={now}": ["theirs", "far", "mine"],
        f"?created_since={now}": [],
        "?created_since=2020-01-01": ["theirs", "far", "mine"],
        "?created_since=2020-01-01T00:00:00Z&host=compute-1&state=pending": ["mine"],
        "?limit=0": [],
    }.items():
        assert listed(cloud, query) == [ids[name] for name in names], query


def test_a_tenant_sees_its_own_projects_jobs_and_no_host(
    cloud: Cloud, jobs: dict[str, tuple[str, str]]
) -> None:
    mine = [jobs["far"][1], jobs["mine"][1]]
    assert listed(cloud, who="demo:p-demo") == mine
    assert listed(cloud, "?project_id=p-demo", who="demo:p-demo") == mine
    assert {job["host"] for job in cloud.get("/v1/jobs").json["jobs"]} == {None}
    assert cloud.get(f"/v1/jobs/{mine[1]}").json["job"]["host"] is None
    assert cloud.get(f"/v1/jobs/{mine[1]}", ADMIN).json["job"]["host"] == agent_says.HOST
    for query in ("?project_id=p-other", "?host=compute-1"):
        assert "get_all_projects" in refused(cloud, query, 403)


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "at one instant"])
def test_pages_hold_each_job_once_newest_first(
    cloud: Cloud, instance: InstanceRecord, at_once: bool
) -> None:
    made = add_jobs(cloud, instance.uuid, 7, step_s=0 if at_once else 1)
    found: list[str] = []
    url: str | None = "/v1/jobs?limit=3&state=done&state=error"
    while url is not None:
        reply = cloud.get(url, ADMIN)
        assert len(reply.json["jobs"]) <= 3
        found += [job["id"] for job in reply.json["jobs"]]
        links = reply.json.get("jobs_links", [{"href": None}])
        url = links[0]["href"] and links[0]["href"].removeprefix("http://falconframework.org")
    assert found == (sorted(made, reverse=True) if at_once else made[::-1])


def add_jobs(cloud: Cloud, instance_uuid: str, count: int, step_s: float = 1) -> list[str]:
    """Add jobs that have ended, oldest first; return their ids."""
    began = clock.now() - dt.timedelta(days=1)
    ids = [str(uuid.uuid4()) for _ in range(count)]
    nothing: dict[str, Any] = {"bytes_done": 0, "bytes_total": 0, "rate_bytes_s": 0.0}
    with cloud.database.write() as session:
        session.add_all(
            JobRow(
                id=job_id,
                kind="snapshot",
                state=JobState.DONE,
                instance_uuid=instance_uuid,
                project_id=agent_says.PROJECT,
                host=agent_says.HOST,
                image_id=str(uuid.uuid4()),
                options={},
                context={},
                castable=True,
                steps=[],
                discard_image=False,
                created_at=began + dt.timedelta(seconds=number * step_s),
                deadline_at=began,
                **nothing,
            )
            for number, job_id in enumerate(ids)
        )
    return ids


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("?limit=-1", "limit"),
        ("?limit=x", "limit"),
        ("?limit=1&limit=2", "twice"),
        ("?state=gone", "state"),
        ("?kind=fly", "kind"),
        ("?instance_uuid=web", "instance_uuid"),
        ("?marker=x", "marker"),
        (f"?marker={uuid.UUID(int=7)}", "marker"),
        ("?created_since=yesterday", "created_since"),
        ("?created_before=0001-01-01T00:00:00%2B14:00", "created_before"),
        ("?colour=red", "colour"),
    ],
)
def test_what_cannot_be_asked_is_400_and_named(cloud: Cloud, query: str, named: str) -> None:
    assert named in refused(cloud, query, 400)


def test_anothers_job_is_no_marker(cloud: Cloud, jobs: dict[str, tuple[str, str]]) -> None:
    assert "marker" in refused(cloud, f"?marker={jobs['theirs'][1]}", 400)


def test_who_has_no_project_lists_nothing(
    cloud: Cloud, jobs: dict[str, tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unscoped token must not be taken for "every project"."""
    from api_service import middleware

    def unscoped(_self: Any, request: Any, _response: Any) -> None:
        request.context.caller.roles = ["member", "reader"]

    monkeypatch.setattr(middleware.NoIdentity, "process_request", unscoped)
    unidentified = Cloud(str(cloud.database.engine.url), cloud.images, cloud.casts)
    for url in ("/v1/jobs", f"/v1/jobs/{jobs['mine'][1]}"):
        assert unidentified.get(url).status_code in (403, 404)
    unidentified.database.engine.dispose()
