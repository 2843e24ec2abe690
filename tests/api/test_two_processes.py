# SPDX-License-Identifier: Apache-2.0
"""Two stillframe-api processes, as on two hosts, on one database; there is no broker."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa

from api_service.store.engine import Database
from api_service.store.inventory import Inventory
from api_service.store.models import LeaseRow
from common.reports import HostReport
from tests.api import agents as agent_says
from tests.api.conftest import Served
from tests.api.test_glance_calls import Server, glance
from tools.stack.process import Process, free_port

__all__ = ["glance"]

START_S = 60.0
TAKEN_OVER_S = 30.0
WHO = {"X-Auth-Token": f"{agent_says.USER}:{agent_says.PROJECT}"}
CONFIG = """\
[DEFAULT]
transport_url = rabbit://guest:guest@127.0.0.1:{nobody}/
state_path = {here}
[database]
connection = {database}
[api]
auth_strategy = noauth
bind_port = {port}
dispatch_interval = 1
[glance]
endpoint_override = {glance}
"""


class Api:
    """One process."""

    def __init__(self, directory: Path, **places: object) -> None:
        directory.mkdir()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = Process("stillframe-api", directory)
        self.config = directory / "stillframe.conf"
        self.config.write_text(
            CONFIG.format(here=directory, port=port, nobody=free_port(), **places)
        )

    def start(self) -> None:
        command = str(Path(sys.executable).with_name("stillframe-api"))
        self.process.start([command, "--config-file", str(self.config)])

    def answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(self.url, timeout=5).status_code == 200
        return False

    def snapshot(self, uuid: str) -> int:
        """Ask for a snapshot; return the status."""
        url, body = f"{self.url}/v2.1/servers/{uuid}/action", {"createImage": {"name": "n"}}
        return requests.post(url, json=body, headers=WHO, timeout=30).status_code


@pytest.fixture
def database(served: Callable[[str], Served]) -> Iterator[Database]:
    database = Database(served("postgresql").emptied())
    yield database
    database.engine.dispose()


@pytest.fixture
def apis(tmp_path: Path, database: Database, glance: Server) -> Iterator[list[Api]]:
    """Two that answer."""
    places = {
        "database": database.engine.url.render_as_string(hide_password=False),
        "glance": f"http://127.0.0.1:{glance.server_port}",
    }
    with contextlib.ExitStack() as stopping:
        apis = [Api(tmp_path / name, **places) for name in ("one", "two")]
        for api in apis:
            stopping.callback(api.process.kill)
            api.start()
        for api in apis:
            api.process.wait_until(api.answers, START_S)
        yield apis


def wait_for_reaper(database: Database, *, other_than: int | None = None) -> int:
    """Wait until a process reaps, another one than that; return its id."""
    query = sa.select(LeaseRow.holder).where(LeaseRow.name == "reaper")
    deadline = time.monotonic() + TAKEN_OVER_S
    while time.monotonic() < deadline:
        with database.read() as session:
            holder = session.scalars(query).one_or_none()
        if holder is not None and (pid := int(holder.split(":")[1])) != other_than:
            return pid
        time.sleep(0.1)
    raise AssertionError("nobody reaps")


def test_two_processes_are_one_api(apis: list[Api], database: Database) -> None:
    record = agent_says.instance()
    Inventory(database).take(HostReport.from_wire(agent_says.heartbeat(record)))
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda n: apis[n % 2].snapshot(record.uuid), range(8)))
    assert sorted(statuses) == [202] + [409] * 7

    first = wait_for_reaper(database)
    (dead,) = [api for api in apis if api.process.pid == first]
    (alive,) = [api for api in apis if api is not dead]
    dead.process.kill()
    assert wait_for_reaper(database, other_than=first) == alive.process.pid
