# SPDX-License-Identifier: Apache-2.0
"""What every resource works with, handed in by `app`; and the caller, as they see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import falcon

from api_service.agents import Agents
from api_service.backups import Backups
from api_service.dispatcher import Dispatcher
from api_service.lifecycle import Lifecycle
from api_service.policies import Authorizer
from api_service.policy_parts import PolicyParts
from api_service.powers import Powers
from api_service.quotas import Rates, Streams
from api_service.rebuilds import Rebuilds
from api_service.snapshots import Snapshots
from api_service.store.inventory import Inventory
from api_service.store.ledger import Ledger
from api_service.store.overrides import Overrides
from api_service.store.records import Instance
from api_service.views import Viewer
from api_service.visibility import Visibility
from common.context import RequestContext


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One API process's parts; all thread-safe."""

    authorizer: Authorizer
    inventory: Inventory
    ledger: Ledger
    agents: Agents
    snapshots: Snapshots
    backups: Backups
    policies: PolicyParts
    powers: Powers
    lifecycle: Lifecycle
    rebuilds: Rebuilds
    overrides: Overrides
    dispatcher: Dispatcher
    visibility: Visibility
    #: Name and check of each backend; a check raises StillframeError when it is down.
    health_checks: dict[str, Callable[[], Any]]
    link_prefix: str | None
    max_limit: int
    rates: Rates = dataclasses.field(default_factory=Rates)
    streams: Streams = dataclasses.field(default_factory=Streams)


class Resource:
    """Base of the resources: the services, and what they all need of a request."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def caller(self, request: falcon.Request) -> RequestContext:
        """Return who asks."""
        caller: RequestContext = request.context.caller
        return caller

    def viewer(self, request: falcon.Request) -> Viewer:
        """Return what a view depends on."""
        is_admin = self.services.authorizer.is_admin(self.caller(request))
        return Viewer(
            base_url=self.base_url(request),
            version=request.context.version,
            is_admin=is_admin,
            sees_hosts=self.services.authorizer.allows(
                self.caller(request), "os_compute_api:os-extended-server-attributes"
            ),
            live_hosts=self.services.agents.live_hosts() if is_admin else frozenset(),
        )

    def base_url(self, request: falcon.Request) -> str:
        """Return the URL that clients reach us under."""
        return (self.services.link_prefix or request.prefix).rstrip("/")

    def visible_instance(
        self, request: falcon.Request, instance_id: str, rule: str, *, even_deleted: bool = False
    ) -> Instance:
        """Return an instance that the caller may see, with its id on every log line from here.

        Raises NotFound also for another project's instance: that it exists is
        not the caller's business. Raises Forbidden if `rule` says no.
        """
        return self.services.visibility.instance(
            self.caller(request), instance_id, rule, even_deleted=even_deleted
        )
