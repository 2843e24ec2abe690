# SPDX-License-Identifier: Apache-2.0
"""A page is read along an index, however many there are: no sorting, no looking at all rows."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from api_service.store.models import InstanceRow, JobRow
from common import clock
from common.reports import InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.test_job_lists import add_jobs

COUNT = 10_000
ADMIN = "admin:ops"


@contextmanager
def queries(cloud: Cloud) -> Iterator[list[tuple[str, Any]]]:
    """Note every query that is made of instances or jobs."""
    made: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if re.search(r"FROM (jobs|instances)", statement):
            made.append((statement, parameters))

    event.listen(cloud.database.engine, "before_cursor_execute", note)
    try:
        yield made
    finally:
        event.remove(cloud.database.engine, "before_cursor_execute", note)


def plans(cloud: Cloud, url: str, who: str) -> list[str]:
    """Return how SQLite goes about what a request asks."""
    with queries(cloud) as made:
        reply = cloud.get(url, who)
    assert reply.status_code == 200, reply.text
    with cloud.database.engine.connect() as connection:
        return [
            str(step[3])
            for statement, parameters in made
            for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


@pytest.fixture
def many(cloud: Cloud, instance: InstanceRecord) -> dict[str, str]:
    """Ten thousand instances and jobs; one of each from their middle."""
    jobs = add_jobs(cloud, instance.uuid, COUNT, step_s=0.01)
    with cloud.database.write() as session:
        (known,) = session.execute(sa.select(InstanceRow.__table__)).mappings().all()
        uuids = [str(uuid.uuid4()) for _ in range(COUNT)]
        session.execute(
            sa.insert(InstanceRow.__table__),  # type: ignore[arg-type]
            [{**known, "uuid": one, "created_at": clock.now()} for one in uuids],
        )
        # What the planner knows of a database that was used for a while.
        session.execute(sa.text("ANALYZE"))
    return {"job": jobs[COUNT // 2], "instance": uuids[COUNT // 2], "of": instance.uuid}


def test_a_page_is_read_along_an_index(cloud: Cloud, many: dict[str, str]) -> None:
    member = f"demo:{agent_says.PROJECT}"
    for url, who in (
        ("/v2.1/servers?limit=1000", member),
        ("/v2.1/servers/detail?limit=1000", member),
        (f"/v2.1/servers/detail?limit=10&marker={many['instance']}", member),
        ("/v2.1/servers/detail?limit=10&all_tenants=1", ADMIN),
        (f"/v2.1/servers/detail?limit=10&all_tenants=1&marker={many['instance']}", ADMIN),
        ("/v1/jobs?limit=10", member),
        ("/v1/jobs?limit=10", ADMIN),
        (f"/v1/jobs?limit=10&marker={many['job']}", member),
        (f"/v1/jobs?limit=10&marker={many['job']}", ADMIN),
        (f"/v1/jobs?limit=10&instance_uuid={many['of']}", ADMIN),
        ("/v1/jobs?limit=10&state=pending", ADMIN),
        ("/v1/jobs?limit=10&host=compute-1", ADMIN),
        ("/v1/jobs?limit=10&created_since=2020-01-01", ADMIN),
    ):
        steps = plans(cloud, url, who)
        assert steps, url
        for step in steps:
            assert " USING " in step, f"{url}: {step}"
            assert "TEMP B-TREE" not in step, f"{url}: {step}"


def test_what_a_quota_counts_is_found_by_an_index(cloud: Cloud, many: dict[str, str]) -> None:
    held = sa.select(sa.func.count()).where(
        JobRow.project_id == "p", JobRow.state.in_(["pending"]), JobRow.kind.in_(["snapshot"])
    )
    compiled = held.compile(cloud.database.engine, compile_kwargs={"literal_binds": True})
    with cloud.database.engine.connect() as connection:
        (step,) = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")
    assert "COVERING INDEX ix_jobs_quota" in step[3]
