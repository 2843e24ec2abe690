# SPDX-License-Identifier: Apache-2.0
"""A whole API in process: real application, real database, an agent and a Glance made of tests.

`cloud` (see `clouds`) has a database of SQLite; the
tests of ON_EVERY_DATABASE see private PostgreSQL and MariaDB servers, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from api_service.store.engine import Database
from api_service.store.models import Base
from common.reports import InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, RecordedCasts
from tests.api.memory_images import MemoryImages
from tests.api.new_servers import SMALL
from tests.api.rotated import Rotated
from tools.stack.databases import SERVERS, ProgramMissing

#: Modules whose tests run on each kind of database: what leans on it most.
ON_EVERY_DATABASE = frozenset(
    f"tests.api.{name}"
    for name in (
        "test_backup_policies",
        "test_databases",
        "test_deleted_servers",
        "test_giving_up",
        "test_host_reports",
        "test_job_lists",
        "test_instance_actions",
        "test_keeping_promises",
        "test_policy_obstacles",
        "test_policy_runs",
        "test_quotas",
        "test_reports",
        "test_rotation",
        "test_rotation_failures",
        "test_server_lists",
        "test_several_servers",
    )
)
SQLITE = "sqlite"


@pytest.fixture
def images() -> MemoryImages:
    return MemoryImages()


@pytest.fixture
def casts() -> RecordedCasts:
    return RecordedCasts()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let the tests of some modules run once for each kind of database."""
    wanted = metafunc.module.__name__ in ON_EVERY_DATABASE
    if wanted and "database_url" in metafunc.fixturenames:
        kinds = [SQLITE, *SERVERS]
        metafunc.parametrize("database_kind", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def database_kind(request: pytest.FixtureRequest) -> str:
    """What kind of database the test runs on."""
    return getattr(request, "param", SQLITE)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of the newest schema: copying one is quicker than migrating."""
    path = tmp_path_factory.mktemp("database") / "api.sqlite"
    database = Database(f"sqlite:///{path}")
    database.sync()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.engine.dispose()
    return path


class Served:
    """A migrated database on a server of our own, which tests use one after the other."""

    def __init__(self, kind: str) -> None:
        self.server = SERVERS[kind]()

    def start(self) -> None:
        """Start the server and make the newest schema."""
        self.server.start()
        self._database = Database(self.server.url)
        self._database.sync()
        self._version = self._database.version()

    def emptied(self) -> str:
        """Return its URL, and whatever the test before left is gone."""
        with self._database.engine.begin() as connection:
            for table in Base.metadata.sorted_tables:
                connection.execute(table.delete())
            version = sa.text("UPDATE alembic_version SET version_num = :version")
            connection.execute(version, {"version": self._version})
        return self.server.url

    def stop(self) -> None:
        """Stop the server."""
        self.server.stop()


@pytest.fixture(scope="session")
def served() -> Iterator[Callable[[str], Served]]:
    """Start a server of a kind, once; skip where it is not installed."""
    running: dict[str, Served] = {}
    with contextlib.ExitStack() as stopping:

        def serve(kind: str) -> Served:
            if kind not in running:
                try:
                    running[kind] = Served(kind)
                except ProgramMissing as missing:
                    if os.environ.get("CI"):
                        raise
                    pytest.skip(str(missing))
                stopping.callback(running[kind].stop)
                running[kind].start()
            return running[kind]

        yield serve


@pytest.fixture
def database_url(
    database_kind: str, tmp_path: Path, migrated: Path, served: Callable[[str], Served]
) -> str:
    """An empty database of the newest schema."""
    if database_kind == SQLITE:
        return f"sqlite:///{shutil.copy(migrated, tmp_path)}"
    return served(database_kind).emptied()


@pytest.fixture
def cloud(database_url: str, images: MemoryImages, casts: RecordedCasts) -> Iterator[Cloud]:
    cloud = Cloud(database_url, images, casts)
    yield cloud
    cloud.database.engine.dispose()


@pytest.fixture
def instance(cloud: Cloud) -> InstanceRecord:
    """A running instance of project p-demo on a host whose agent is up."""
    record = agent_says.instance()
    cloud.announce(record)
    return record


@pytest.fixture
def image(cloud: Cloud, images: MemoryImages) -> str:
    """An image of the project, on a cloud with one empty host and one size."""
    cloud.flavors["small"] = SMALL
    cloud.announce()
    return images.add(owner="p-demo", disk_format="qcow2", size=1 << 20, hw_disk_bus="virtio")


@pytest.fixture
def backups(cloud: Cloud, instance: InstanceRecord) -> Rotated:
    """The backups of that instance: none yet."""
    return Rotated(cloud, instance)
