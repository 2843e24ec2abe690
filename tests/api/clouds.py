# SPDX-License-Identifier: Apache-2.0
"""One API in process, wired as `api_service.app` wires it, and what it casts.

Only what lies outside of the process (RabbitMQ, Glance) is a twin in memory.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable
from typing import Any

from falcon import testing
from oslo_config import cfg

from api_service.agent_client import AgentClient
from api_service.agents import Agents
from api_service.app import make_application, make_calls
from api_service.backups import Backups
from api_service.dispatcher import Dispatcher
from api_service.lifecycle import Lifecycle
from api_service.placement import Placement
from api_service.policies import Authorizer
from api_service.policy_parts import PolicyLimits, PolicyParts, make_policy_parts
from api_service.policy_runner import Verify
from api_service.powers import Powers
from api_service.quotas import Quotas, Rates, Streams
from api_service.reaper import Reaper
from api_service.rebuilds import Rebuilds
from api_service.resources.services import Services
from api_service.rotation import Rotation
from api_service.rotator import Rotator
from api_service.snapshots import Snapshots
from api_service.status import StatusEndpoint
from api_service.store.backups import BackupList
from api_service.store.engine import Database
from api_service.store.inventory import Inventory
from api_service.store.ledger import Ledger
from api_service.store.lifecycles import Lifecycles
from api_service.store.overrides import Overrides
from api_service.visibility import Visibility
from common import context
from common.errors import StillframeError
from common.reports import Flavor, InstanceRecord
from tests.api import agents as agent_says
from tests.api.memory_images import MemoryImages

DOWN_AFTER_S = 60.0
ACCEPT_TIMEOUT_S = 300.0
CALLS_AT_ONCE = 4


class RecordedCasts:
    """Stands where the RPC client stands; keeps what was cast, or fails as told.

    A cast is seen once the ledger knows of it: a test goes on from there.
    """

    def __init__(self) -> None:
        self.failure: StillframeError | None = None
        self.attempts = 0
        self._made: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._casts: queue.Queue[dict[str, Any]] = queue.Queue()

    def cast(
        self,
        caller: context.RequestContext,
        method: str,
        *,
        host: str | None = None,
        **arguments: Any,
    ) -> None:
        """Keep a cast."""
        self.attempts += 1
        if self.failure is not None:
            raise self.failure
        self._made.put({"caller": caller, "method": method, "host": host, **arguments})

    def show(self) -> None:
        """Let what was cast be seen."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._casts.put(self._made.get_nowait())

    def next(self) -> dict[str, Any]:
        """Wait for the next cast; raises queue.Empty if none comes."""
        return self._casts.get(timeout=10)

    def empty(self) -> bool:
        """Tell whether nothing waits to be looked at."""
        return self._casts.empty()


class ShownDispatcher(Dispatcher):
    """The dispatcher; what it cast is seen when it has said so to the ledger."""

    casts: RecordedCasts | None = None

    def cast(self, job_id: str) -> bool:
        """Cast what the agent does not know yet of a job."""
        try:
            return super().cast(job_id)
        finally:
            self._show()

    def cast_limit(self, job_id: str) -> bool:
        """Cast a limit."""
        try:
            return super().cast_limit(job_id)
        finally:
            self._show()

    def _show(self) -> None:
        if self.casts is not None:
            self.casts.show()


class Cloud:
    """One API process and what it talks to. Two of them may share `database_url`."""

    def __init__(
        self,
        database_url: str,
        images: MemoryImages,
        casts: RecordedCasts,
        *,
        quotas: Quotas | None = None,
        rates: Rates | None = None,
        streams: Streams | None = None,
        policy_limits: PolicyLimits | None = None,
        verify: Verify | None = None,
    ) -> None:
        self.quotas, self.rates = quotas or Quotas(), rates or Rates()
        self.streams = streams or Streams(look_s=0.05)
        self.database = Database(database_url)
        self.ledger, self.inventory = Ledger(self.database), Inventory(self.database)
        self.agents = Agents(self.inventory, DOWN_AFTER_S)
        self.images = images
        self.casts = casts
        client = AgentClient(casts, self.agents.clock_offset_s)  # type: ignore[arg-type]
        self.dispatcher = ShownDispatcher(self.ledger, client)
        self.dispatcher.casts = casts
        self.rotator = self.make_rotator()
        self.status = StatusEndpoint(
            self.ledger, self.inventory, self.agents, lambda: self.rotator.poke()
        )
        self.reaper = self.make_reaper()
        #: The sizes that new servers may have: none, unless a test says so.
        self.flavors: dict[str, Flavor] = {}
        self.health: dict[str, Callable[[], Any]] = {"database": lambda: None}
        self.services = services = self._services(policy_limits, verify)
        self.policies = services.policies
        self.backups = services.backups
        self.http = testing.TestClient(make_application(services))
        self.calls = make_calls(services, most_at_once=CALLS_AT_ONCE)

    def make_reaper(
        self,
        *,
        interval_s: float = 0.0,
        silence_s: float = 3600.0,
        grace_s: float = 0.0,
        is_consuming: Callable[[], bool] = lambda: True,
    ) -> Reaper:
        """Return a reaper, not started; a test calls `round` itself."""
        return Reaper(
            database=self.database,
            ledger=self.ledger,
            agents=self.agents,
            images=self.images,
            dispatcher=self.dispatcher,
            interval_s=interval_s,
            silence_s=silence_s,
            grace_s=grace_s,
            is_consuming=is_consuming,
        )

    def make_rotator(self, *, interval_s: float = 0.0) -> Rotator:
        """Return a rotator, not started; a test calls `round` itself."""
        backups = BackupList(self.database)
        return Rotator(
            database=self.database,
            backups=backups,
            rotation=Rotation(backups, self.images),
            interval_s=interval_s,
        )

    def _services(
        self, limits: PolicyLimits | None = None, verify: Verify | None = None
    ) -> Services:
        conf = cfg.ConfigOpts()
        conf([], project="stillframe", default_config_files=[], default_config_dirs=[])
        overrides = Overrides(self.database)
        snapshots = Snapshots(
            ledger=self.ledger,
            agents=self.agents,
            images=self.images,
            accept_timeout_s=ACCEPT_TIMEOUT_S,
            quotas=self.quotas,
        )
        authorizer = Authorizer(conf)
        visibility = Visibility(authorizer=authorizer, inventory=self.inventory, ledger=self.ledger)
        backups = Backups(snapshots=snapshots)
        return Services(
            authorizer=authorizer,
            visibility=visibility,
            inventory=self.inventory,
            ledger=self.ledger,
            agents=self.agents,
            snapshots=snapshots,
            backups=backups,
            policies=self._policies(visibility, backups, limits, verify),
            overrides=overrides,
            powers=Powers(
                ledger=self.ledger,
                overrides=overrides,
                agents=self.agents,
                accept_timeout_s=ACCEPT_TIMEOUT_S,
            ),
            lifecycle=self._lifecycle(),
            rebuilds=Rebuilds(
                ledger=self.ledger,
                overrides=overrides,
                agents=self.agents,
                images=self.images,
                accept_timeout_s=ACCEPT_TIMEOUT_S,
                quotas=self.quotas,
            ),
            dispatcher=self.dispatcher,
            health_checks=self.health,
            link_prefix=None,
            max_limit=1000,
            rates=self.rates,
            streams=self.streams,
        )

    def _policies(
        self,
        visibility: Visibility,
        backups: Backups,
        limits: PolicyLimits | None,
        verify: Verify | None,
    ) -> PolicyParts:
        return make_policy_parts(
            database=self.database,
            visibility=visibility,
            images=self.images,
            backups=backups,
            dispatcher=self.dispatcher,
            limits=limits or PolicyLimits(),
            verify=verify,
        )

    def _lifecycle(self) -> Lifecycle:
        return Lifecycle(
            ledger=self.ledger,
            lifecycles=Lifecycles(self.database),
            inventory=self.inventory,
            agents=self.agents,
            placement=Placement(agents=self.agents, inventory=self.inventory),
            images=self.images,
            accept_timeout_s=ACCEPT_TIMEOUT_S,
            quotas=self.quotas,
            flavors=self.flavors,
        )

    def report(self, method: str, report: dict[str, Any], **caller: Any) -> Any:
        """Let an agent's report arrive."""
        return getattr(self.status, method)(context.new(**caller), report=report)

    def announce(self, *instances: InstanceRecord, **heartbeat: Any) -> None:
        """Let a host announce its complete list of instances."""
        self.report("host_report", agent_says.heartbeat(*instances, **heartbeat))

    def get(self, url: str, who: str | None = "demo:p-demo", version: str = "2.96") -> Any:
        """GET a URL as somebody, in a version."""
        return self.http.simulate_get(url, headers=headers(who, version))

    def act(
        self,
        uuid: str,
        body: Any,
        who: str | None = "demo:p-demo",
        version: str = "2.96",
    ) -> Any:
        """POST an action to a server."""
        url = f"/v2.1/servers/{uuid}/action"
        return self.http.simulate_post(url, json=body, headers=headers(who, version))

    def snapshot(self, uuid: str, name: str = "nightly", **changes: Any) -> Any:
        """Ask for a snapshot."""
        return self.act(uuid, {"createImage": {"name": name}}, **changes)

    def backup(self, uuid: str, rotation: int = 1, **changes: Any) -> Any:
        """Ask for a backup: `daily`, unless something else is said."""
        body = {"name": "nightly", "backup_type": "daily", "rotation": rotation, **changes}
        return self.act(uuid, {"createBackup": body})

    def server(self, uuid: str, who: str = "admin:ops") -> dict[str, Any]:
        """Return a server's body, as the administrator sees it."""
        reply = self.get(f"/v2.1/servers/{uuid}", who)
        assert reply.status_code == 200, reply.text
        body: dict[str, Any] = reply.json["server"]
        return body

    def job_of(self, image_id: str) -> Any:
        """Return the ledger's job that makes an image, as the administrator sees it."""
        reply = self.get("/v1/jobs", "admin:ops")
        assert reply.status_code == 200, reply.text
        (job,) = [job for job in reply.json["jobs"] if job["image_id"] == image_id]
        return job

    def task_state(self, uuid: str) -> str | None:
        """Return what is being done to a server."""
        state: str | None = self.server(uuid)["OS-EXT-STS:task_state"]
        return state


def headers(token: str | None, version: str) -> dict[str, str]:
    """Return the headers that keystoneauth sends."""
    named = {
        "OpenStack-API-Version": f"compute {version}",
        "X-OpenStack-Nova-API-Version": version,
    }
    return named if token is None else named | {"X-Auth-Token": token}
