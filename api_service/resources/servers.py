# SPDX-License-Identifier: Apache-2.0
"""`/servers`: lists and single ones, as Nova shows them."""

from __future__ import annotations

import falcon

from api_service import schemas, views
from api_service.errors import BadRequest, Forbidden
from api_service.resources import parameters, server_query
from api_service.resources.services import Resource
from api_service.store.instance_lists import InstanceQuery
from api_service.store.records import Instance
from api_service.visibility import is_uuid

#: The instance's fields by their names in the body of a change.
FIELDS = {
    "name": "name",
    "description": "description",
    "hostname": "hostname",
    "accessIPv4": "access_ip_v4",
    "accessIPv6": "access_ip_v6",
    "OS-DCF:diskConfig": "disk_config",
}


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

    def on_post(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Refuse to make one: 403, which no client tries again."""
        schemas.read_body(request)
        raise Forbidden("Servers are not made through this API; their hypervisors announce them.")


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
        changes = {FIELDS[name]: value for name, value in asked.items()}
        if changes:
            self.services.overrides.describe(instance.uuid, changes)
        changed = self.visible_instance(request, server_id, rule)
        response.media = {"server": views.updated_server(changed, self.viewer(request))}

    def on_delete(
        self, request: falcon.Request, _response: falcon.Response, server_id: str
    ) -> None:
        """Refuse to delete it."""
        self.visible_instance(request, server_id, "os_compute_api:servers:show")
        raise Forbidden("Servers are not deleted through this API; their hypervisors end them.")
