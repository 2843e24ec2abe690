# SPDX-License-Identifier: Apache-2.0
"""How many requests the API answers, and how fast, beside a bare resource on the same server.

Real parts: RabbitMQ, Keystone, Glance, a SQLite database with ten thousand
instances, one stillframe-api, which has the tokens in its cache; only the agent
does nothing with what it is cast. In each round every request follows the bare
resource in shuffled order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from api_service.store.engine import Database
from api_service.store.inventory import Inventory
from common import clock
from common.reports import Flavor, HostReport, Hypervisor, InstanceRecord
from common.states import PowerState
from tools.bench import load
from tools.bench.load import Request
from tools.bench.stage import say
from tools.demo import CACHE
from tools.stack import glance, keystone
from tools.stack.glance import Glance
from tools.stack.identity import Endpoints, Identity, NoIdentity
from tools.stack.keystone import Keystone
from tools.stack.process import Process, free_port, listens
from tools.stack.rabbitmq import RabbitMq

MANY, FEW, PAGE = 10_000, 100, 1000
CLIENTS = (1, 20)
HOST = "bench-host"
_ROOT = Path(__file__).parents[2]
_START_S = 60.0
_VERSION = "2.96"
_SEED = 6
#: No more of them than instances are held for it: each can be asked once.
_SNAPSHOTS = 3000

_CONFIG = """\
[DEFAULT]
transport_url = {broker}
state_path = {here}
log_dir = {here}/log
service_down_time = 86400
[api]
bind_port = {port}
dispatch_interval = 3600
job_accept_timeout = 86400
[quota]
open_jobs = -1
{identity}
"""
#: Users, each a member of the project of its name: of ten thousand instances, and of a hundred.
_OF_MANY, _OF_FEW = "demo", "other"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long each request is asked, how often the whole is done, and who knows the callers."""

    rounds: int = 5
    seconds: float = 5.0
    with_keystone: bool = True


QUICK = Plan(rounds=2, seconds=2.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is asked: `take` gives the requests of one run."""

    name: str
    port: int
    take: Callable[[], Sequence[Request]]


class Stage:
    """One API, what it talks to, and what it knows."""

    def __init__(self, directory: Path, *, with_keystone: bool) -> None:
        self._directory = directory
        self.rabbitmq = RabbitMq(directory / "rabbitmq")
        self.glance = Glance(directory / "glance", CACHE / "venv-glance")
        self.api, self.bare = Process("api", directory), Process("bare", directory)
        self.agent = Process("agent", directory)
        self.port, self.bare_port = free_port(), free_port()
        self.identity: Identity = NoIdentity()
        if with_keystone:
            self.identity = self._make_identity()
        self.glance.identity = self.identity
        self.many, self.few, self.spare = (
            [str(uuid.uuid4()) for _ in range(count)] for count in (MANY, FEW, _SNAPSHOTS)
        )

    def start(self) -> None:
        """Start everything, announce the instances, and take one snapshot that never ends."""
        with ThreadPoolExecutor() as pool:
            parts = (self.rabbitmq, self.identity, self.glance)
            for done in [pool.submit(one.start) for one in parts]:
                done.result()
        self._tokens = {user: self.identity.token(user) for user in (_OF_MANY, _OF_FEW)}
        config = self._configure()
        bin_directory = Path(sys.executable).parent
        manage = f"{bin_directory}/stillframe-manage"
        command = [manage, "--config-file", str(config), "db", "sync"]
        subprocess.run(command, check=True, timeout=_START_S, capture_output=True)
        self._announce()
        self.agent.start(_python("agent", str(config), HOST))
        self.api.start([str(bin_directory / "stillframe-api"), "--config-file", str(config)])
        self.api.wait_until(lambda: listens(self.port), _START_S)
        self._act(self.many[0], {"createImage": {"name": "held"}}, 202)
        size = len(self._ask("GET", f"/v2.1/servers/{self.many[1]}", 200))
        self.bare.start(_python("bare", str(self.bare_port), str(size)))
        self.bare.wait_until(lambda: listens(self.bare_port), _START_S)

    def stop(self) -> None:
        """Stop everything."""
        for process in (self.bare, self.api, self.agent):
            process.stop()
        self.glance.stop()
        self.identity.stop()
        self.rabbitmq.stop()

    def rows(self) -> list[Row]:
        """Return what is asked, the bare resource first."""
        asked = {
            "GET server": self._get(f"/{self.many[1]}", _OF_MANY),
            f"list {FEW} of {FEW}": self._get(f"/detail?limit={FEW}", _OF_FEW),
            f"list {FEW} of {MANY}": self._get(f"/detail?limit={FEW}", _OF_MANY),
            f"list {FEW} of {MANY}, middle": self._get(
                f"/detail?limit={FEW}&marker={self.many[MANY // 2]}", _OF_MANY
            ),
            f"list {PAGE} of {MANY}": self._get(f"/detail?limit={PAGE}", _OF_MANY),
            "createImage 409": self._snapshot(self.many[0], 409),
            "createImage 404": self._snapshot(str(uuid.uuid4()), 404),
            "createImage 400": self._snapshot(self.many[1], 400, name=""),
        }
        bare = Request(method="GET", path="/bare")
        return [
            Row(name="bare", port=self.bare_port, take=lambda: [bare]),
            *(
                Row(name=name, port=self.port, take=lambda one=one: [one])  # type: ignore[misc]
                for name, one in asked.items()
            ),
            Row(name="createImage 202", port=self.port, take=self._snapshots),
        ]

    def _snapshots(self) -> list[Request]:
        """Return requests for snapshots of instances of which none was asked for yet."""
        taken, self.spare = self.spare[:150], self.spare[150:]
        return [self._snapshot(one, 202) for one in taken]

    def _get(self, path: str, user: str) -> Request:
        return Request(method="GET", path=f"/v2.1/servers{path}", headers=self._headers(user))

    def _snapshot(self, instance: str, status: int, name: str = "nightly") -> Request:
        return Request(
            method="POST",
            path=f"/v2.1/servers/{instance}/action",
            status=status,
            body=json.dumps({"createImage": {"name": name}}),
            headers=(*self._headers(_OF_MANY), ("Content-Type", "application/json")),
        )

    def _headers(self, user: str) -> tuple[tuple[str, str], ...]:
        return (
            ("X-Auth-Token", self._tokens[user]),
            ("OpenStack-API-Version", f"compute {_VERSION}"),
        )

    def _act(self, instance: str, body: dict[str, Any], status: int) -> None:
        self._ask("POST", f"/v2.1/servers/{instance}/action", status, json=body)

    def _ask(self, method: str, path: str, status: int, **more: Any) -> bytes:
        url, headers = f"http://127.0.0.1:{self.port}{path}", dict(self._headers(_OF_MANY))
        reply = requests.request(method, url, headers=headers, timeout=_START_S, **more)
        if reply.status_code != status:
            raise RuntimeError(f"{method} {path}: {reply.status_code} {reply.text[:500]}")
        return reply.content

    def _configure(self) -> Path:
        (self._directory / "log").mkdir(exist_ok=True)
        path = self._directory / "stillframe.conf"
        path.write_text(
            _CONFIG.format(
                here=self._directory,
                port=self.port,
                broker=self.rabbitmq.transport_url,
                identity=self.identity.daemon_options(self.glance.endpoint),
            )
        )
        return path

    def _make_identity(self) -> Keystone:
        endpoints = Endpoints(compute=f"http://127.0.0.1:{self.port}", image=self.glance.endpoint)
        return Keystone(self._directory / "keystone", CACHE / "venv-keystone", endpoints)

    def _announce(self) -> None:
        database = Database(f"sqlite:///{self._directory}/api.sqlite")
        owned = ((self.many, _OF_MANY), (self.few, _OF_FEW), (self.spare, _OF_MANY))
        now = clock.epoch_s()
        instances = tuple(
            _instance(one, project, now - number)
            for uuids, project in owned
            for number, one in enumerate(uuids)
        )
        report = HostReport(
            host=HOST,
            release="bench",
            started_at=now,
            at=now,
            hypervisor=Hypervisor(
                type="QEMU", version=7_002_022, hostname=HOST, vcpus=8, memory_mib=16_384
            ),
            instances=instances,
        )
        Inventory(database).take(report)
        database.engine.dispose()


#: Request and number of clients → for each round, how long each of its requests took, in s.
Took = dict[tuple[str, int], list[list[float]]]


def run(plan: Plan) -> dict[str, Any]:
    """Measure everything; return what the JSON has."""
    took: Took = {}
    with stage(with_keystone=plan.with_keystone) as ready:
        rows = ready.rows()
        order = random.Random(_SEED)  # noqa: S311 # the same order in each run of the benchmark
        for _ in range(plan.rounds):
            for clients in CLIENTS:
                for row in order.sample(rows, len(rows)):
                    say(f"{row.name}, {clients} clients")
                    found = load.run(row.port, row.take(), clients, plan.seconds)
                    took.setdefault((row.name, clients), []).append(found)
    told = [figures(row.name, n, took[row.name, n]) for row in rows for n in CLIENTS]
    return {"rows": told, "ratios": ratios(took), "host": _host()}


def figures(request: str, clients: int, rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return a row: the median of the rounds' rates, and the times of all requests together."""
    times = [one for each in rounds for one in each]
    return {
        "request": request,
        "clients": clients,
        "rps": round(statistics.median(_rate(each, clients) for each in rounds), 1),
        "p50_ms": round(_percentile(times, 50) * 1000, 2),
        "p99_ms": round(_percentile(times, 99) * 1000, 2),
    }


def ratios(took: Took) -> dict[str, float]:
    """Return what the goals are about: medians of the rounds' ratios.

    `get_vs_bare`: rates, with the most clients. `page_10000_vs_100`: the median
    time of a page, with one client.
    """
    one, most = CLIENTS[0], CLIENTS[-1]
    few, many = (
        [_percentile(each, 50) for each in took[f"list {FEW} of {of}", one]] for of in (FEW, MANY)
    )
    get, bare = (
        [_rate(each, most) for each in took[name, most]] for name in ("GET server", "bare")
    )
    return {"get_vs_bare": _ratio(get, bare), "page_10000_vs_100": _ratio(many, few)}


def table(found: dict[str, Any]) -> str:
    """Return the rows and ratios for people."""
    lines = [f"{'':26}{'clients':>8}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}"]
    lines += [
        f"{row['request']:26}{row['clients']:8}{row['rps']:9.1f}{row['p50_ms']:9.2f}"
        f"{row['p99_ms']:9.2f}"
        for row in found["rows"]
    ]
    lines += ["", *(f"{name:26}{value:8.3f}" for name, value in found["ratios"].items()), ""]
    return "\n".join(lines)


@contextlib.contextmanager
def stage(*, with_keystone: bool) -> Iterator[Stage]:
    """Start everything; stop and remove it afterwards."""
    CACHE.mkdir(parents=True, exist_ok=True)
    glance.make_venv(CACHE / "venv-glance")
    if with_keystone:
        keystone.make_venv(CACHE / "venv-keystone")
    with tempfile.TemporaryDirectory(prefix="sf-bench-", ignore_cleanup_errors=True) as directory:
        made = Stage(Path(directory), with_keystone=with_keystone)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def _instance(instance: str, project: str, created_at: float) -> InstanceRecord:
    return InstanceRecord(
        uuid=instance,
        name=f"web-{instance[:8]}",
        domain_name=f"instance-{instance[:8]}",
        project_id=project,
        user_id="bench",
        flavor=Flavor(name="m1.small", vcpus=1, memory_mib=2048, disk_gib=20),
        image_ref=str(uuid.uuid4()),
        power_state=PowerState.RUNNING,
        image_properties={"hw_disk_bus": "virtio", "os_type": "linux"},
        root_device_name="/dev/vda",
        created_at=created_at,
    )


def _python(*arguments: str) -> list[str]:
    os.environ["PYTHONPATH"] = str(_ROOT)
    return [sys.executable, "-m", "tools.bench.serve", *arguments]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def _rate(times: Sequence[float], clients: int) -> float:
    """Return requests a second: each client has one under way at any time."""
    return clients * len(times) / sum(times)


def _percentile(times: Sequence[float], percent: int) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _host() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": sys.version.split()[0],
    }
