# SPDX-License-Identifier: Apache-2.0
"""What operators ask of hosts: services, zones, aggregates, and `/v1/hosts`."""

from __future__ import annotations

import falcon

from api_service import views
from api_service.errors import NotFound
from api_service.resources import parameters
from api_service.resources.services import Resource

_ZONE = "nova"


class ComputeServices(Resource):
    """`GET /v2.1/os-services`: the agents, up or down."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them."""
        rule = "os_compute_api:os-services:list"
        self.services.authorizer.require(self.caller(request), rule)
        parameters.require_known(request, {"host", "binary"})
        agents, viewer = self.services.agents, self.viewer(request)
        wanted_host, wanted_binary = request.get_param("host"), request.get_param("binary")
        response.media = {
            "services": [
                views.service(agent, viewer, up=agents.is_up(agent))
                for agent in agents.all()
                if wanted_host in (None, agent.host) and wanted_binary in (None, "nova-compute")
            ]
        }


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
        guests, agents = self.services.inventory.guests_by_host(), self.services.agents
        response.media = {
            "hosts": [
                views.host(agent, up=agents.is_up(agent), instances=len(guests.get(agent.host, [])))
                for agent in agents.all()
            ]
        }


def _zone(hosts: dict[str, object] | None) -> dict[str, object]:
    zone = {"zoneName": _ZONE, "zoneState": {"available": True}, "hosts": hosts}
    return {"availabilityZoneInfo": [zone]}
