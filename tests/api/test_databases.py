# SPDX-License-Identifier: Apache-2.0
"""SQLite, PostgreSQL and MariaDB behave alike, also when several processes use one at once.

Each test runs on each of the three; so do the modules of
`conftest.ON_EVERY_DATABASE`, and what is imported here from others.
"""

from __future__ import annotations

import datetime as dt
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from oslo_db import exception as db_errors

from api_service.store.engine import Database
from api_service.store.instance_lists import InstanceQuery
from api_service.store.inventory import Inventory
from api_service.store.lease import Lease
from api_service.store.ledger import Ledger
from api_service.store.models import JobRow
from api_service.store.records import Instance, Job, NewJob
from common import clock
from common.errors import InstanceBusy, InstanceNotFound
from common.reports import HostReport, InstanceRecord, JobAccepted, JobOutcome, JobProgress
from common.states import JobKind, JobState, TaskState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.conftest import SQLITE
from tests.api.test_create_image import test_of_racing_requests_exactly_one_wins
from tests.api.test_database import (
    test_a_database_of_a_newer_release_is_refused,
    test_a_job_that_an_older_release_wrote_is_read,
    test_a_release_that_runs_on_may_write_what_it_knows,
    test_first_reports_of_one_host_may_come_at_once,
    test_syncing_twice_is_harmless,
    test_the_migrations_make_exactly_the_models,
    test_writers_wait_for_each_other,
)
from tests.api.test_jobs import (
    test_a_job_at_work_is_cancelled_by_its_agent,
    test_a_job_that_no_agent_has_ends_at_once,
    test_an_image_for_each_disk_is_shown,
    test_the_operator_changes_a_jobs_limit,
)
from tests.api.test_server_filters import (
    test_an_administrators_filters_filter,
    test_no_expression_holds_the_process,
    test_what_clients_send_is_matched,
    two,
)
from tests.api.test_servers import (
    test_a_list_holds_the_projects_own_instances_only,
    test_flavors_are_those_of_the_callers_instances,
    test_pages_hold_each_server_once_newest_first,
)

__all__ = [
    "test_a_database_of_a_newer_release_is_refused",
    "test_a_job_at_work_is_cancelled_by_its_agent",
    "test_a_job_that_an_older_release_wrote_is_read",
    "test_a_job_that_no_agent_has_ends_at_once",
    "test_a_list_holds_the_projects_own_instances_only",
    "test_a_release_that_runs_on_may_write_what_it_knows",
    "test_an_administrators_filters_filter",
    "test_an_image_for_each_disk_is_shown",
    "test_first_reports_of_one_host_may_come_at_once",
    "test_flavors_are_those_of_the_callers_instances",
    "test_no_expression_holds_the_process",
    "test_of_racing_requests_exactly_one_wins",
    "test_pages_hold_each_server_once_newest_first",
    "test_syncing_twice_is_harmless",
    "test_the_migrations_make_exactly_the_models",
    "test_the_operator_changes_a_jobs_limit",
    "test_what_clients_send_is_matched",
    "test_writers_wait_for_each_other",
    "two",
]

THREADS = 12


@pytest.fixture
def others(database_url: str) -> Iterator[list[Database]]:
    """The same database as other processes have it."""
    databases = [Database(database_url) for _ in range(3)]
    yield databases
    for database in databases:
        database.engine.dispose()


def at_once(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Do that many times at once; return what came of it, and raise what was raised."""
    start = threading.Barrier(count)

    def do(number: int) -> Any:
        start.wait(20)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(do, range(count)))


def known(cloud: Cloud, record: InstanceRecord) -> Instance:
    """Return an announced instance as the store has it."""
    found = cloud.inventory.instance(record.uuid)
    assert found is not None
    return found


def wish(instance: Instance) -> NewJob:
    """Return a job to be reserved."""
    return NewJob(
        id=str(uuid.uuid4()),
        kind=JobKind.SNAPSHOT,
        instance=instance,
        user_id="demo",
        image_id=str(uuid.uuid4()),
        options={},
        context={},
        action="createImage",
        task_state=TaskState.IMAGE_SNAPSHOT_PENDING,
        deadline_at=clock.now() + dt.timedelta(minutes=5),
    )


def reserve(database: Database, instance: Instance) -> Job | str:
    """Reserve an instance; return the job, or why not."""
    try:
        return Ledger(database).reserve(wish(instance))
    except (InstanceBusy, InstanceNotFound) as error:
        return error.message


def test_of_many_reservations_exactly_one_wins(cloud: Cloud, others: list[Database]) -> None:
    """Of several instances at once, so that they meet each other's rows, too."""
    records = [agent_says.instance() for _ in range(3)]
    cloud.announce(*records)
    instances = [known(cloud, record) for record in records]
    came = at_once(lambda n: reserve(others[n % 3], instances[n % 4 % 3]))
    won = [one for one in came if isinstance(one, Job)]
    assert sorted(job.instance_uuid for job in won) == sorted(one.uuid for one in instances)
    for lost in came:
        assert isinstance(lost, Job) or "while it is in task_state image_snapshot_pending" in lost
    for job in won:
        held = cloud.inventory.instance(job.instance_uuid)
        assert held is not None
        assert held.job_id == job.id


def test_reports_that_come_at_once_end_as_one_by_one(
    cloud: Cloud, instance: InstanceRecord, others: list[Database]
) -> None:
    """Doubled, in any order, through several processes, while heartbeats come, too."""
    job = reserve(cloud.database, known(cloud, instance))
    assert isinstance(job, Job)
    ids = (job.id, instance.uuid, job.image_id)
    reports: list[Callable[[Database], Any]] = [
        lambda db: Ledger(db).accept(JobAccepted.from_wire(agent_says.accepted(*ids))),
        lambda db: Ledger(db).progress(JobProgress.from_wire(agent_says.progress(job.id))),
        lambda db: Ledger(db).finish(JobOutcome.from_wire(agent_says.finished(*ids))),
        lambda db: Inventory(db).take(HostReport.from_wire(agent_says.heartbeat(instance))),
    ] * 4
    random.shuffle(reports)
    at_once(lambda n: reports[n](others[n % 3]), len(reports))
    ended = cloud.ledger.find(job.id)
    assert ended is not None
    assert (ended.state, ended.size_bytes, ended.reason) == (JobState.DONE, 1000, None)
    freed = known(cloud, instance)
    assert (freed.task_state, freed.job_id, freed.progress) == (None, None, 0)


def test_a_foreign_job_that_several_processes_hear_of_is_one(
    cloud: Cloud, instance: InstanceRecord, others: list[Database]
) -> None:
    ids = (str(uuid.uuid4()), instance.uuid, str(uuid.uuid4()))
    report = JobAccepted.from_wire(agent_says.accepted(*ids))
    came = at_once(lambda n: Ledger(others[n % 3]).record(report, {}))
    assert came.count(True) == 1
    assert known(cloud, instance).job_id == ids[0]


def test_hosts_that_tell_of_each_others_instances_do_not_block_jobs(
    cloud: Cloud, others: list[Database]
) -> None:
    """Instances that move while snapshots of them begin and end."""
    records = [agent_says.instance() for _ in range(6)]
    cloud.announce(*records)

    def work(number: int) -> None:
        database, shuffled = others[number % 3], random.sample(records, 4)
        for one in range(4):
            if number % 2:
                report = agent_says.heartbeat(*shuffled, host=f"compute-{number % 4}")
                Inventory(database).take(HostReport.from_wire(report))
            elif found := Inventory(database).instance(shuffled[one].uuid):
                job = reserve(database, found)
                if isinstance(job, Job):
                    Ledger(database).fail(job.id, "no", "capture_failed")

    at_once(work)
    assert cloud.ledger.open_jobs() == []
    cloud.announce(*records, host="compute-9")
    held = [one for one in cloud.inventory.instances(InstanceQuery()) if one.task_state]
    assert held == []


def test_of_many_takers_one_holds_a_lease(cloud: Cloud, others: list[Database]) -> None:
    """Where there is none yet, where it has lapsed, and never a second while it lasts."""
    for duration_s in (-1, -1, 30):
        leases = [Lease(others[n % 3], "r", f"h{n}", duration_s) for n in range(THREADS)]
        came = at_once(lambda n, leases=leases: leases[n].take())  # type: ignore[misc]
        assert came.count(True) >= 1
    assert came.count(True) == 1
    holder = leases[came.index(True)]
    assert holder.take()
    assert not any(one.take() for one in leases if one is not holder)


def test_a_host_whose_clock_runs_ahead_takes_no_lease_away(
    cloud: Cloud, database_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database_kind == SQLITE:
        pytest.skip("one host, one clock")
    assert Lease(cloud.database, "r", "mine", 30).take()
    now = clock.now() + dt.timedelta(hours=1)
    monkeypatch.setattr(clock, "now", lambda: now)
    assert not Lease(cloud.database, "r", "theirs", 30).take()
    assert Lease(cloud.database, "r", "mine", 30).take()


def test_times_come_back_to_the_microsecond_and_in_utc(
    cloud: Cloud, instance: InstanceRecord
) -> None:
    """Whatever zone the server is in."""
    job = reserve(cloud.database, known(cloud, instance))
    assert isinstance(job, Job)
    at = dt.datetime(2031, 3, 30, 2, 30, 0, 123456, tzinfo=dt.UTC)
    elsewhere = at.astimezone(dt.timezone(dt.timedelta(hours=-9)))
    with cloud.database.write() as session:
        session.execute(sa.update(JobRow).values(deadline_at=elsewhere))
    found = cloud.ledger.find(job.id)
    assert found is not None
    assert found.deadline_at == at
    assert found.deadline_at.utcoffset() == dt.timedelta(0)
    with cloud.database.read() as session:
        assert abs(cloud.database.now(session) - clock.now()) < dt.timedelta(seconds=30)


def test_every_character_is_kept_and_told_from_every_other(cloud: Cloud) -> None:
    names = ["Web", "web", "wéb", "w💾b", "x" * 255]
    properties = {"os_distro": 'débian "12" \\ 💾'}
    cloud.announce(*(agent_says.instance(name=n, image_properties=properties) for n in names))
    for name in names:
        (found,) = cloud.inventory.instances(InstanceQuery(exactly={"name": name}))
        assert (found.name, found.image_properties) == (name, properties)
    (found,) = cloud.inventory.instances(InstanceQuery(patterns={"name": "^W.b"}))
    assert found.name == "Web"
    assert cloud.inventory.instances(InstanceQuery(project_id=agent_says.PROJECT.upper())) == []


@pytest.mark.parametrize("field", ["name", "domain_name", "user_id", "root_device_name"])
def test_words_that_do_not_fit_cost_no_report(cloud: Cloud, field: str) -> None:
    record = agent_says.instance(**{field: "a\0" + "b" * 1000})
    cloud.announce(record)
    kept = getattr(known(cloud, record), field)
    assert kept.startswith("a\ufffdb")
    assert len(kept) <= 255


def test_a_reason_of_any_length_ends_its_job(cloud: Cloud, instance: InstanceRecord) -> None:
    job = reserve(cloud.database, known(cloud, instance))
    assert isinstance(job, Job)
    assert cloud.ledger.fail(job.id, "💾\0" * 50_000, "x" * 100)
    found = cloud.ledger.find(job.id)
    assert found is not None
    assert found.state is JobState.ERROR
    assert found.reason is not None
    assert found.reason.startswith("💾\ufffd")


@pytest.mark.parametrize("pattern", ["***:x", "x{99999999999"])
def test_what_the_database_takes_for_no_expression_is_no_defect(
    cloud: Cloud, instance: InstanceRecord, pattern: str
) -> None:
    reply = cloud.http.simulate_get(
        "/v2.1/servers",
        params={"name": pattern},
        headers={"X-Auth-Token": "demo:p-demo"},
    )
    assert reply.status_code in (200, 400), reply.text


SLOW = {
    "postgresql": "SELECT pg_sleep(30)",
    "mariadb": "SELECT SLEEP(30)",
}


def test_no_query_occupies_the_database_for_long(cloud: Cloud, database_kind: str) -> None:
    if database_kind == SQLITE:
        pytest.skip("it is matched in linear time there")
    with pytest.raises(db_errors.DBError), cloud.database.read_for(1) as session:
        session.execute(sa.text(SLOW[database_kind]))
    with cloud.database.write() as session:
        limits = {"postgresql": "SHOW statement_timeout", "mariadb": "SELECT @@max_statement_time"}
        assert float(session.execute(sa.text(limits[database_kind])).scalar_one()) == 0


KILL = {
    "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
    "mariadb": ("SELECT connection_id()", "KILL {}"),
}


def test_a_connection_that_breaks_is_told_and_the_next_one_is_another(
    cloud: Cloud, instance: InstanceRecord, database_kind: str, others: list[Database]
) -> None:
    if database_kind == SQLITE:
        pytest.skip("there is no connection to break")
    which, kill = KILL[database_kind]

    def write() -> None:
        with cloud.database.write() as session, others[0].engine.connect() as connection:
            me = session.execute(sa.text(which)).scalar_one()
            connection.execute(sa.text(kill.format(me)))
            session.execute(sa.text("SELECT 1"))

    with pytest.raises(db_errors.DBConnectionError):
        write()
    assert known(cloud, instance).uuid == instance.uuid


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://nobody@/x?host=/nonexistent",
        "mysql+pymysql://root@localhost/x?unix_socket=/nonexistent",
        "mariadb+pymysql://root@localhost/x?unix_socket=/nonexistent",
        "sqlite:////nonexistent/x.sqlite",
    ],
)
def test_a_database_that_cannot_be_reached_is_an_error_that_is_known(url: str) -> None:
    with pytest.raises(db_errors.DBError):
        Database(url, max_retries=1, retry_interval=0)


def test_on_mariadb_every_table_tells_letters_apart_and_every_connection_reads_as_committed(
    cloud: Cloud, database_kind: str
) -> None:
    if database_kind != "mariadb":
        pytest.skip("the others do by themselves")
    columns = sa.text(
        "SELECT DISTINCT collation_name FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND collation_name IS NOT NULL"
        " AND table_name != 'alembic_version'"
    )
    with cloud.database.engine.connect() as one, cloud.database.engine.connect() as another:
        assert list(one.scalars(columns)) == ["utf8mb4_bin"]
        for connection in (one, another):
            assert connection.exec_driver_sql("SELECT @@tx_isolation").scalar() == "READ-COMMITTED"


def test_mariadbs_own_name_is_understood_too(cloud: Cloud, database_url: str) -> None:
    """oslo.db tells that two transactions wait for each other only by the name `mysql`."""
    if not database_url.startswith("mysql+"):
        pytest.skip("the URL of another database")
    database = Database(database_url.replace("mysql+", "mariadb+", 1))
    assert database.engine.dialect.name == "mysql"
    assert database.version() == cloud.database.version()
    database.engine.dispose()
