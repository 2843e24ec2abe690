# SPDX-License-Identifier: Apache-2.0
"""What operators ask of hosts: services, hypervisors, zones, aggregates, and `/v1/hosts`."""

from __future__ import annotations

import falcon

from api_service import views
from api_service.errors import BadRequest, NotFound
from api_service.microversions import Version
from api_service.resources.services import Resource, is_uuid
from api_service.store.records import Agent

_ZONE = "nova"
_UUIDS = Version(2, 53)


class ComputeServices(Resource):
    """`GET /v2.1/os-services`: the agents, up or down."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them."""
        rule = "os_compute_api:os-services:list"
        self.services.authorizer.require(self.caller(request), rule)
        agents, viewer = self.services.agents, self.viewer(request)
        wanted_host, wanted_binary = request.get_param("host"), request.get_param("binary")
        response.media = {
            "services": [
                views.service(agent, viewer, up=agents.is_up(agent))
                for agent in agents.all()
                if wanted_host in (None, agent.host) and wanted_binary in (None, "nova-compute")
            ]
        }


class Hypervisors(Resource):
    """`/os-hypervisors`: the hosts that have told what they are."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them."""
        self.services.authorizer.require(self.caller(request), "os_compute_api:os-hypervisors:list")
        viewer, is_up = self.viewer(request), self.services.agents.is_up
        response.media = {
            "hypervisors": [
                views.hypervisor_summary(agent, viewer, up=is_up(agent))
                for agent in self._wanted(request)
            ]
        }

    def on_get_detail(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them with what they have."""
        rule = "os_compute_api:os-hypervisors:list-detail"
        self.services.authorizer.require(self.caller(request), rule)
        response.media = {"hypervisors": self._whole(request, self._wanted(request))}

    def on_get_one(
        self, request: falcon.Request, response: falcon.Response, hypervisor_id: str
    ) -> None:
        """Show one."""
        self.services.authorizer.require(self.caller(request), "os_compute_api:os-hypervisors:show")
        if request.context.version >= _UUIDS and not is_uuid(hypervisor_id):
            raise BadRequest(f"Invalid uuid {hypervisor_id[:64]}")
        shown = self._whole(request, self._known())
        found = [one for one in shown if str(one["id"]) == hypervisor_id]
        if not found:
            raise NotFound(f"Hypervisor with ID '{hypervisor_id[:64]}' could not be found.")
        response.media = {"hypervisor": found[0]}

    def _known(self) -> list[Agent]:
        return [agent for agent in self.services.agents.all() if agent.hypervisor is not None]

    def _wanted(self, request: falcon.Request) -> list[Agent]:
        pattern = (request.get_param("hypervisor_hostname_pattern") or "").lower()
        found = [agent for agent in self._known() if pattern in _hostname(agent).lower()]
        if pattern and not found:
            raise NotFound(f"No hypervisor matching '{pattern[:255]}' could be found.")
        return found

    def _whole(self, request: falcon.Request, agents: list[Agent]) -> list[dict[str, object]]:
        viewer, is_up = self.viewer(request), self.services.agents.is_up
        sizes = self.services.inventory.sizes_by_host()
        return [
            views.hypervisor(agent, viewer, up=is_up(agent), instances=sizes.get(agent.host, []))
            for agent in agents
        ]


class Zones(Resource):
    """`GET /os-availability-zone`: there is one."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List it."""
        rule = "os_compute_api:os-availability-zone:list"
        self.services.authorizer.require(self.caller(request), rule)
        response.media = _zone(None)

    def on_get_detail(self, request: falcon.Request, response: falcon.Response) -> None:
        """List it, with its hosts."""
        rule = "os_compute_api:os-availability-zone:detail"
        self.services.authorizer.require(self.caller(request), rule)
        response.media = _zone(
            {
                agent.host: {
                    "nova-compute": {
                        "available": self.services.agents.is_up(agent),
                        "active": True,
                        "updated_at": agent.last_seen_at.replace(tzinfo=None).isoformat(),
                    }
                }
                for agent in self.services.agents.all()
            }
        )


class Aggregates(Resource):
    """`GET /os-aggregates`: there are none."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them."""
        rule = "os_compute_api:os-aggregates:index"
        self.services.authorizer.require(self.caller(request), rule)
        response.media = {"aggregates": []}

    def on_get_one(
        self, request: falcon.Request, _response: falcon.Response, aggregate_id: str
    ) -> None:
        """Show one, which is not there."""
        rule = "os_compute_api:os-aggregates:show"
        self.services.authorizer.require(self.caller(request), rule)
        raise NotFound(f"Aggregate {aggregate_id[:64]} could not be found.")


class Hosts(Resource):
    """`GET /v1/hosts`."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them, with their agents' releases, clocks and open jobs."""
        self.services.authorizer.require(self.caller(request), "stillframe:hosts:index")
        sizes, agents = self.services.inventory.sizes_by_host(), self.services.agents
        response.media = {
            "hosts": [
                views.host(agent, up=agents.is_up(agent), instances=len(sizes.get(agent.host, [])))
                for agent in agents.all()
            ]
        }


def _hostname(agent: Agent) -> str:
    return agent.hypervisor.hostname if agent.hypervisor else agent.host


def _zone(hosts: dict[str, object] | None) -> dict[str, object]:
    zone = {"zoneName": _ZONE, "zoneState": {"available": True}, "hosts": hosts}
    return {"availabilityZoneInfo": [zone]}
