# SPDX-License-Identifier: Apache-2.0
"""`/servers`: lists and single ones, as Nova shows them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import falcon

from api_service import powers, schemas, views
from api_service.errors import BadRequest
from api_service.lifecycle import ServerWish
from api_service.resources import parameters, server_query
from api_service.resources.services import Resource
from api_service.schemas.create import (
    counts_of,
    create_server,
    networks_of,
    require_possible,
    wants_reservation,
)
from api_service.store.instance_lists import InstanceQuery
from api_service.store.records import Instance
from api_service.visibility import is_uuid
from common.context import RequestContext

#: There is one availability zone.
ZONE = "nova"

#: The instance's fields by their names in the body of a change.
FIELDS = {
    "name": "name",
    "description": "description",
    "hostname": "hostname",
    "accessIPv4": "access_ip_v4",
    "accessIPv6": "access_ip_v6",
    "OS-DCF:diskConfig": "disk_config",
}


def fields_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a body says of a server, by the instance's fields.

    Like Nova it keeps an IPv6 address in its shortest form (RFC 5952).
    """
    said = {FIELDS[name]: value for name, value in asked.items() if name in FIELDS}
    if said.get("access_ip_v6"):
        said["access_ip_v6"] = str(ipaddress.IPv6Address(said["access_ip_v6"]))
    return said


class _ServerList(Resource):
    """What the two lists have in common."""

    rule = "os_compute_api:servers:index"

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the servers that the caller may see, a page at a time."""
        self.services.authorizer.require(self.caller(request), self.rule)
        query = self._query(request)
        found = self.services.inventory.instances(query) if query is not None else []
        viewer = self.viewer(request)
        response.media = {"servers": [self._view(instance, viewer) for instance in found]}
        if query is not None and found and len(found) == query.limit:
            response.media["servers_links"] = [
                parameters.next_link(request, self.base_url(request), found[-1].uuid)
            ]

    def _view(self, instance: Instance, viewer: views.Viewer) -> dict[str, object]:
        return views.server_summary(instance, viewer)

    def _query(self, request: falcon.Request) -> InstanceQuery | None:
        """Return what is asked for; None if nothing can match. Unknown filters are ignored."""
        parameters.require_known(request, server_query.PARAMETERS)
        is_admin = self.services.authorizer.is_admin(self.caller(request))
        max_limit = self.services.max_limit
        limit = min(parameters.number(request, "limit", max_limit), max_limit)
        project_id, matchable = self._project(request, is_admin)
        asked = server_query.Asked(request=request, is_admin=is_admin, project_id=project_id)
        query = server_query.query_of(asked, self._marker(request, project_id), limit)
        return query if matchable else None

    def _project(self, request: falcon.Request, is_admin: bool) -> tuple[str | None, bool]:
        """Return the project to list, None for all, and whether anything can match."""
        scope = None if self._all_tenants(request) else self.caller(request).project_id
        given = request.get_param("project_id") or request.get_param("tenant_id")
        wanted = given if is_admin else None
        return wanted or scope, wanted is None or scope in (None, wanted)

    def _all_tenants(self, request: falcon.Request) -> bool:
        asked = parameters.is_true(request, "all_tenants")
        if asked:
            rule = "os_compute_api:servers:index:get_all_tenants"
            self.services.authorizer.require(self.caller(request), rule)
        return asked

    def _marker(self, request: falcon.Request, project_id: str | None) -> str | None:
        marker = request.get_param("marker")
        if marker is None:
            return None
        instance = self.services.inventory.past_instance(marker) if is_uuid(marker) else None
        if instance is None or project_id not in (None, instance.project_id):
            raise BadRequest(f"marker [{marker}] not found")
        return marker


class Servers(_ServerList):
    """`/servers`."""

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Make one, or several: they exist from now on, and the answer shows the first."""
        body, caller = schemas.read_body(request), self.caller(request)
        schemas.validate(create_server(request.context.version), body)
        self.services.authorizer.require(caller, "os_compute_api:servers:create")
        require_possible(body)
        is_admin = self.services.authorizer.is_admin(caller)
        asked = body["server"]
        made = self.services.lifecycle.create(caller, self._wish(caller, asked), is_admin=is_admin)
        for job in made.jobs:
            if job.castable:
                self.services.dispatcher.poke(job.id)
        response.status = falcon.HTTP_202
        if wants_reservation(asked):
            response.media = {"reservation_id": made.reservation_id}
            return
        first, disk_config = made.jobs[0].instance_uuid, asked.get("OS-DCF:diskConfig")
        server = views.created_server(first, disk_config, self.viewer(request))
        response.location = server["links"][0]["href"]
        response.media = {"server": server}

    def _wish(self, caller: RequestContext, asked: dict[str, Any]) -> ServerWish:
        lifecycle = self.services.lifecycle
        least, most = counts_of(asked)
        return ServerWish(
            least=least,
            most=most,
            name=asked["name"],
            image_id=asked["imageRef"],
            flavor_id=str(asked["flavorRef"]),
            networks=networks_of(asked, lifecycle.default_network),
            metadata=asked.get("metadata", {}),
            fields=fields_of(asked),
            host=self._host(caller, asked),
        )

    def _host(self, caller: RequestContext, asked: dict[str, Any]) -> str | None:
        """Return the host that it shall be on, if the caller may say so; None: any."""
        zone, _, forced = str(asked.get("availability_zone", ZONE)).partition(":")
        if zone not in (ZONE, ""):
            raise BadRequest("The requested availability zone is not available")
        named = {asked[name] for name in ("host", "hypervisor_hostname") if name in asked}
        if forced and named:
            raise BadRequest(
                "Specifying an availability zone with a host is mutually exclusive with host "
                "and hypervisor_hostname."
            )
        if forced:
            rule = "os_compute_api:servers:create:forced_host"
            self.services.authorizer.require(caller, rule)
            return forced.partition(":")[0]
        if not named:
            return None
        rule = "compute:servers:create:requested_destination"
        self.services.authorizer.require(caller, rule)
        hosts = {name: self.services.lifecycle.placement.host_called(name) for name in named}
        for name, host in hosts.items():
            if host is None:
                raise BadRequest(f"Compute host {name} could not be found.")
        if len(set(hosts.values())) > 1:
            raise BadRequest(f"No compute node has all of these names: {', '.join(sorted(named))}.")
        return next(iter(hosts.values()))


class ServersDetail(_ServerList):
    """`GET /servers/detail`."""

    rule = "os_compute_api:servers:detail"

    def _view(self, instance: Instance, viewer: views.Viewer) -> dict[str, object]:
        return views.server(instance, viewer, show=False)


class Server(Resource):
    """`GET /servers/{id}`."""

    def on_get(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """Show a server."""
        rule = "os_compute_api:servers:show"
        instance = self.visible_instance(request, server_id, rule)
        response.media = {"server": views.server(instance, self.viewer(request), show=True)}

    def on_put(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """Give it another name, or say something else of it."""
        body = schemas.read_body(request)
        schemas.validate(schemas.update_server(request.context.version), body)
        rule = "os_compute_api:servers:update"
        instance = self.visible_instance(request, server_id, rule)
        asked = body["server"]
        changes = fields_of(asked)
        if changes:
            self.services.overrides.describe(instance.uuid, changes)
        changed = self.visible_instance(request, server_id, rule)
        response.media = {"server": views.updated_server(changed, self.viewer(request))}

    def on_delete(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """Delete it, whatever it is at: 204, and it goes as soon as its host has ended it."""
        instance = self.visible_instance(request, server_id, "os_compute_api:servers:delete")
        caller = self.caller(request)
        is_admin = self.services.authorizer.is_admin(caller)
        powers.require_unlocked(instance, is_admin=is_admin)
        for job_id in self.services.lifecycle.delete(caller, instance):
            self.services.dispatcher.poke(job_id)
        response.status = falcon.HTTP_204
