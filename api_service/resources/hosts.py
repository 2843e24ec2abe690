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
    """`GET /os-hypervisors`."""

    rule = "os_compute_api:os-hypervisors:list"

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the hosts that have told what they are."""
        self.services.authorizer.require(self.caller(request), self.rule)
        pattern = (request.get_param("hypervisor_hostname_pattern") or "").lower()
        found = [agent for agent in self._agents(request) if pattern in _hostname(agent).lower()]
        if pattern and not found:
            raise NotFound(f"No hypervisor matching '{pattern[:255]}' could be found.")
        response.media = {"hypervisors": [self._view(request, agent) for agent in found]}

    def _agents(self, _request: falcon.Request) -> list[Agent]:
        return [agent for agent in self.services.agents.all() if agent.hypervisor is not None]

    def _view(self, request: falcon.Request, agent: Agent) -> dict[str, object]:
        up = self.services.agents.is_up(agent)
        return views.hypervisor_summary(agent, self.viewer(request), up=up)

    def _whole(self, request: falcon.Request, agent: Agent) -> dict[str, object]:
        instances = self.services.inventory.numbers_of_instances().get(agent.host, 0)
        up = self.services.agents.is_up(agent)
        return views.hypervisor(agent, self.viewer(request), up=up, instances=instances)


class HypervisorsDetail(Hypervisors):
    """`GET /os-hypervisors/detail`."""

    rule = "os_compute_api:os-hypervisors:list-detail"

    def _view(self, request: falcon.Request, agent: Agent) -> dict[str, object]:
        return self._whole(request, agent)


class HypervisorShow(Hypervisors):
    """`GET /os-hypervisors/{id}`."""

    def on_get(  # type: ignore[override] # one more URL parameter
        self, request: falcon.Request, response: falcon.Response, hypervisor_id: str
    ) -> None:
        """Show one."""
        rule = "os_compute_api:os-hypervisors:show"
        self.services.authorizer.require(self.caller(request), rule)
        if request.context.version >= _UUIDS and not is_uuid(hypervisor_id):
            raise BadRequest(f"Invalid uuid {hypervisor_id[:64]}")
        for agent in self._agents(request):
            shown = self._whole(request, agent)
            if str(shown["id"]) == hypervisor_id:
                response.media = {"hypervisor": shown}
                return
        raise NotFound(f"Hypervisor with ID '{hypervisor_id[:64]}' could not be found.")


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
        numbers, agents = self.services.inventory.numbers_of_instances(), self.services.agents
        response.media = {
            "hosts": [
                views.host(agent, up=agents.is_up(agent), instances=numbers.get(agent.host, 0))
                for agent in agents.all()
            ]
        }


def _hostname(agent: Agent) -> str:
    return agent.hypervisor.hostname if agent.hypervisor else agent.host


def _zone(hosts: dict[str, object] | None) -> dict[str, object]:
    zone = {"zoneName": _ZONE, "zoneState": {"available": True}, "hosts": hosts}
    return {"availabilityZoneInfo": [zone]}
