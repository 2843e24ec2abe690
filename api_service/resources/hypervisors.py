# SPDX-License-Identifier: Apache-2.0
"""`/os-hypervisors`: the hosts that have told what they are, and what runs there."""

from __future__ import annotations

import falcon

from api_service import views
from api_service.errors import BadRequest, NotFound
from api_service.microversions import Version
from api_service.resources import parameters
from api_service.resources.services import Resource
from api_service.store.records import Agent, Guest
from api_service.visibility import is_uuid

_PAGED = Version(2, 33)
#: From here on ids are UUIDs, and a list says what `search` and `servers` said before.
_UUIDS = Version(2, 53)
#: From here on nothing is told of how much of a host is used.
_NO_RESOURCES = Version(2, 88)
_PATTERN = "hypervisor_hostname_pattern"
_WITH_SERVERS = "with_servers"


class _Hypervisors(Resource):
    """What they have in common: which there are, and what runs on each."""

    def _all(self, request: falcon.Request, rule: str) -> list[Agent]:
        self.services.authorizer.require(self.caller(request), rule)
        return [agent for agent in self.services.agents.all() if agent.hypervisor is not None]

    def _matching(self, agents: list[Agent], pattern: str) -> list[Agent]:
        found = [agent for agent in agents if pattern.lower() in _hostname(agent).lower()]
        if not found:
            raise NotFound(f"No hypervisor matching '{pattern[:255]}' could be found.")
        return found

    def _one(self, request: falcon.Request, hypervisor_id: str, rule: str) -> Agent:
        agents, viewer = self._all(request, rule), self.viewer(request)
        if request.context.version >= _UUIDS and not is_uuid(hypervisor_id):
            raise BadRequest(f"Invalid uuid {hypervisor_id[:64]}")
        for agent in agents:
            if str(views.hypervisor_id(agent, viewer)) == hypervisor_id:
                return agent
        raise NotFound(f"Hypervisor with ID '{hypervisor_id[:64]}' could not be found.")

    def _summaries(
        self, request: falcon.Request, agents: list[Agent], guests: dict[str, list[Guest]] | None
    ) -> list[dict[str, object]]:
        viewer, is_up = self.viewer(request), self.services.agents.is_up
        return [
            views.hypervisor_summary(agent, viewer, up=is_up(agent))
            | (views.servers_of(guests.get(agent.host, []), viewer) if guests is not None else {})
            for agent in agents
        ]

    def _wholes(
        self, request: falcon.Request, agents: list[Agent], *, with_servers: bool
    ) -> list[dict[str, object]]:
        viewer, is_up = self.viewer(request), self.services.agents.is_up
        guests = self.services.inventory.guests_by_host()
        return [
            views.hypervisor(agent, viewer, up=is_up(agent), guests=guests.get(agent.host, []))
            | (views.servers_of(guests.get(agent.host, []), viewer) if with_servers else {})
            for agent in agents
        ]


class Hypervisors(_Hypervisors):
    """`GET /os-hypervisors`."""

    rule = "os_compute_api:os-hypervisors:list"

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them, a page at a time from 2.33 on."""
        agents = self._asked(request, self._all(request, self.rule))
        max_limit, more = self.services.max_limit, False
        if request.context.version >= _PAGED:
            viewer = self.viewer(request)
            agents, more = parameters.page(
                request, agents, lambda agent: str(views.hypervisor_id(agent, viewer)), max_limit
            )
        shown = self._views(request, agents)
        response.media = {"hypervisors": shown}
        if more:
            link = parameters.next_link(request, self.base_url(request), str(shown[-1]["id"]))
            response.media["hypervisors_links"] = [link]

    def _views(self, request: falcon.Request, agents: list[Agent]) -> list[dict[str, object]]:
        with_servers = _are_servers_asked(request)
        guests = self.services.inventory.guests_by_host() if with_servers else None
        return self._summaries(request, agents, guests)

    def _asked(self, request: falcon.Request, agents: list[Agent]) -> list[Agent]:
        """Return those of the pattern, which came with 2.53 and pages no list."""
        parameters.require_known(request, {_PATTERN, _WITH_SERVERS} | parameters.PAGING)
        pattern = request.get_param(_PATTERN)
        if pattern is None or request.context.version < _UUIDS:
            return agents
        if parameters.PAGING & set(request.params):
            raise BadRequest(
                f"Paging over hypervisors with the {_PATTERN} query parameter is not supported."
            )
        return self._matching(agents, pattern)


class HypervisorsDetail(Hypervisors):
    """`GET /os-hypervisors/detail`."""

    rule = "os_compute_api:os-hypervisors:list-detail"

    def _views(self, request: falcon.Request, agents: list[Agent]) -> list[dict[str, object]]:
        return self._wholes(request, agents, with_servers=_are_servers_asked(request))


class HypervisorShow(_Hypervisors):
    """`GET /os-hypervisors/{id}`, and below it what later versions have in the list."""

    def on_get(
        self, request: falcon.Request, response: falcon.Response, hypervisor_id: str
    ) -> None:
        """Show one."""
        agent = self._one(request, hypervisor_id, "os_compute_api:os-hypervisors:show")
        parameters.require_known(request, {_WITH_SERVERS})
        with_servers = _are_servers_asked(request)
        (shown,) = self._wholes(request, [agent], with_servers=with_servers)
        response.media = {"hypervisor": shown}

    def on_get_uptime(
        self, request: falcon.Request, response: falcon.Response, hypervisor_id: str
    ) -> None:
        """Show how long it is up, which its agent does not tell; until 2.87."""
        _require_before(request, _NO_RESOURCES)
        agent = self._one(request, hypervisor_id, "os_compute_api:os-hypervisors:uptime")
        (shown,) = self._summaries(request, [agent], None)
        response.media = {"hypervisor": shown | {"uptime": ""}}

    def on_get_search(
        self, request: falcon.Request, response: falcon.Response, hypervisor_id: str
    ) -> None:
        """List those whose name holds a text; until 2.52."""
        _require_before(request, _UUIDS)
        agents = self._all(request, "os_compute_api:os-hypervisors:search")
        found = self._matching(agents, hypervisor_id)
        response.media = {"hypervisors": self._summaries(request, found, None)}

    def on_get_servers(
        self, request: falcon.Request, response: falcon.Response, hypervisor_id: str
    ) -> None:
        """List them with what runs there; until 2.52."""
        _require_before(request, _UUIDS)
        agents = self._all(request, "os_compute_api:os-hypervisors:servers")
        found = self._matching(agents, hypervisor_id)
        guests = self.services.inventory.guests_by_host()
        response.media = {"hypervisors": self._summaries(request, found, guests)}


class HypervisorStatistics(_Hypervisors):
    """`GET /os-hypervisors/statistics`, until 2.87: all of them as one."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Add them up."""
        _require_before(request, _NO_RESOURCES)
        agents = self._all(request, "os_compute_api:os-hypervisors:statistics")
        wholes = self._wholes(request, agents, with_servers=False)
        response.media = {"hypervisor_statistics": views.hypervisor_statistics(wholes)}


def _are_servers_asked(request: falcon.Request) -> bool:
    is_known = request.context.version >= _UUIDS
    return is_known and parameters.is_true(request, _WITH_SERVERS)


def _require_before(request: falcon.Request, gone_since: Version) -> None:
    version = request.context.version
    if version >= gone_since:
        raise NotFound(f"API version '{version}' is not supported on this method.")


def _hostname(agent: Agent) -> str:
    return agent.hypervisor.hostname if agent.hypervisor else agent.host
