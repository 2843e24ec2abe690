# SPDX-License-Identifier: Apache-2.0
"""The schema, and that two processes on one database do not trip over each other."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from api_service.store import engine
from api_service.store.engine import Database, newest_version
from api_service.store.inventory import Inventory
from api_service.store.models import Base
from common.errors import ConfigurationError
from common.reports import HostReport, InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud


def test_the_migrations_make_exactly_the_models(cloud: Cloud) -> None:
    with cloud.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_an_empty_database_is_refused_with_the_remedy(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/empty.sqlite")
    with pytest.raises(ConfigurationError, match="stillframe-manage db sync"):
        database.require_current()
    database.sync()
    database.require_current()
    database.engine.dispose()


def test_a_database_of_a_newer_release_is_refused(cloud: Cloud) -> None:
    with cloud.database.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="9999 is newer than this release") as refused:
        cloud.database.require_current()
    assert "db sync" not in refused.value.message, "there is nothing to sync to"


def test_a_release_that_runs_on_may_write_what_it_knows(cloud: Cloud) -> None:
    """Processes are upgraded one by one, after the schema: what is new must not be demanded."""
    new = {"agents": {"open_jobs"}, "jobs": {"images", "cancel_asked_at", "discarded_at"}}
    new["jobs"] |= {"limit_due"}
    for table, columns in new.items():
        for column in sa.inspect(cloud.database.engine).get_columns(table):
            if column["name"] in columns:
                assert column["nullable"] or column["default"] is not None, column


def test_a_job_that_an_older_release_wrote_is_read(cloud: Cloud, instance: InstanceRecord) -> None:
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    with cloud.database.write() as session:
        session.execute(sa.text("UPDATE jobs SET images = NULL"))
    assert cloud.job_of(image_id)["images"] == []


def test_syncing_twice_is_harmless(cloud: Cloud) -> None:
    cloud.database.sync()
    assert cloud.database.version() == newest_version()


def test_sqlite_lets_readers_go_on_while_one_writes(cloud: Cloud) -> None:
    with cloud.database.engine.connect() as connection:
        assert connection.execute(sa.text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(sa.text("PRAGMA busy_timeout")).scalar() > 1000


def test_sqlites_connections_are_kept_and_each_was_prepared(database_url: str) -> None:
    """The first, too, which oslo.db opens before we can have a say."""
    database = Database(database_url)
    with contextlib.ExitStack() as open_:
        connections = [open_.enter_context(database.engine.connect()) for _ in range(3)]
        for connection in connections:
            timeout_ms = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
            assert timeout_ms == engine._BUSY_TIMEOUT_MS
            assert connection.exec_driver_sql("SELECT 'web' REGEXP 'w.b'").scalar() == 1
        known = {id(one.connection.dbapi_connection) for one in connections}
    with database.engine.connect() as connection:
        assert id(connection.connection.dbapi_connection) in known
    database.engine.dispose()


def test_sqlite_begins_the_transaction_that_each_use_needs(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/begins.sqlite")
    said: list[str] = []
    with database.engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.set_trace_callback(said.append)

    def begun() -> list[str]:
        found = [one for one in said if one.startswith("BEGIN")]
        said.clear()
        return found

    said.clear()
    with database.read() as session:
        session.execute(sa.text("SELECT 2"))
    # And not oslo.db's question before it, whether the connection lives: a file does.
    assert said[:2] == ["BEGIN", "SELECT 2"]
    said.clear()
    for _ in range(2):  # each time anew: oslo.db would have it begun once
        with database.read() as session:
            session.execute(sa.text("SELECT 1"))
        assert begun() == ["BEGIN"]
    with database.write() as session:
        session.execute(sa.text("SELECT 1"))
    assert begun() == ["BEGIN IMMEDIATE"]
    database.engine.dispose()


def test_first_reports_of_one_host_may_come_at_once(database_url: str, cloud: Cloud) -> None:
    """Two API processes take an agent's first reports: neither may fail on the other's row."""
    report = HostReport.from_wire(agent_says.heartbeat(agent_says.instance()))
    others = [Database(database_url) for _ in range(4)]
    start = threading.Barrier(len(others))

    def take(database: Database) -> bool:
        start.wait(10)
        return Inventory(database).take(report)

    with ThreadPoolExecutor(len(others)) as pool:
        news = list(pool.map(take, others))
    for database in others:
        database.engine.dispose()
    assert sum(news) == 1
    assert len(cloud.inventory.agents()) == 1


def test_writers_wait_for_each_other(
    database_url: str, cloud: Cloud, instance: InstanceRecord
) -> None:
    """Heartbeats from many processes at once: none may meet a locked database."""
    others = [Database(database_url) for _ in range(4)]

    def report(number: int) -> None:
        inventory = Inventory(others[number % len(others)])
        heartbeat = agent_says.heartbeat(agent_says.instance(), host=f"compute-{number % 7}")
        inventory.take(HostReport.from_wire(heartbeat))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(report, range(60)))
    for database in others:
        database.engine.dispose()
    assert len(cloud.inventory.agents()) == 7
