# SPDX-License-Identifier: Apache-2.0
"""`/servers`: lists and single ones, as Nova shows them."""

from __future__ import annotations

import re
import urllib.parse

import falcon

from api_service import views
from api_service.errors import BadRequest
from api_service.microversions import Version
from api_service.resources.services import Resource, is_uuid
from api_service.store.inventory import InstanceQuery
from api_service.store.records import Instance

_STRICT_STATUS = Version(2, 38)
_STRICT_PARAMETERS = Version(2, 75)
_PATTERN_MAX = 255

#: What Nova's lists may be asked by; those that we do not narrow down by are ignored.
_PARAMETERS = frozenset(
    {
        "access_ip_v4",
        "access_ip_v6",
        "all_tenants",
        "auto_disk_config",
        "availability_zone",
        "changes-before",
        "changes-since",
        "config_drive",
        "created_at",
        "deleted",
        "description",
        "display_description",
        "display_name",
        "flavor",
        "host",
        "hostname",
        "image",
        "image_ref",
        "instance_type_id",
        "ip",
        "ip6",
        "kernel_id",
        "key_name",
        "launch_index",
        "launched_at",
        "limit",
        "locked",
        "locked_by",
        "marker",
        "name",
        "node",
        "not-tags",
        "not-tags-any",
        "power_state",
        "progress",
        "project_id",
        "ramdisk_id",
        "reservation_id",
        "root_device_name",
        "soft_deleted",
        "sort_dir",
        "sort_key",
        "status",
        "tags",
        "tags-any",
        "task_state",
        "tenant_id",
        "terminated_at",
        "user_id",
        "uuid",
        "vm_state",
    }
)


class Servers(Resource):
    """`GET /servers`."""

    rule = "os_compute_api:servers:index"

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the servers that the caller may see, a page at a time."""
        self.services.authorizer.require(self.caller(request), self.rule)
        query = self._query(request)
        found = self.services.inventory.instances(query) if query is not None else []
        viewer = self.viewer(request)
        response.media = {"servers": [self._view(instance, viewer) for instance in found]}
        if query is not None and found and len(found) == query.limit:
            response.media["servers_links"] = [self._next(request, found[-1].uuid)]

    def _view(self, instance: Instance, viewer: views.Viewer) -> dict[str, object]:
        return views.server_summary(instance, viewer)

    def _query(self, request: falcon.Request) -> InstanceQuery | None:
        """Return what is asked for; None if nothing can match. Unknown filters are ignored."""
        _require_known_parameters(request)
        caller = self.caller(request)
        is_admin = self.services.authorizer.is_admin(caller)
        project_id = None if self._all_tenants(request) else caller.project_id
        limit = min(_number(request, "limit", self.services.max_limit), self.services.max_limit)
        vm_states = self._vm_states(request)
        if limit == 0 or vm_states is None:
            return None
        return InstanceQuery(
            project_id=project_id,
            host=request.get_param("host") if is_admin else None,
            name_pattern=_pattern(request, "name"),
            vm_states=vm_states,
            uuids=tuple(request.get_param_as_list("uuid") or ()),
            marker=self._marker(request, project_id),
            limit=limit,
        )

    def _all_tenants(self, request: falcon.Request) -> bool:
        asked = (request.get_param("all_tenants") or "0").lower() not in ("0", "false", "f", "no")
        if asked:
            rule = "os_compute_api:servers:index:get_all_tenants"
            self.services.authorizer.require(self.caller(request), rule)
        return asked

    def _vm_states(self, request: falcon.Request) -> tuple[str, ...] | None:
        wanted = [status.upper() for status in request.get_param_as_list("status") or ()]
        known = views.VM_STATES_OF_STATUS
        unknown = [status for status in wanted if status not in known]
        if unknown and request.context.version >= _STRICT_STATUS:
            raise BadRequest(f"Invalid status value: {', '.join(unknown)}")
        states = tuple(str(known[status]) for status in wanted if status in known)
        return states if states or not wanted else None

    def _marker(self, request: falcon.Request, project_id: str | None) -> str | None:
        marker = request.get_param("marker")
        if marker is None:
            return None
        instance = self.services.inventory.instance(marker) if is_uuid(marker) else None
        if instance is None or project_id not in (None, instance.project_id):
            raise BadRequest(f"marker [{marker}] not found")
        return marker

    def _next(self, request: falcon.Request, marker: str) -> dict[str, str]:
        query = urllib.parse.urlencode({**request.params, "marker": marker}, doseq=True)
        return {"rel": "next", "href": f"{self.base_url(request)}{request.path}?{query}"}


class ServersDetail(Servers):
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


def _require_known_parameters(request: falcon.Request) -> None:
    """Raise BadRequest for a parameter that Nova has not, in the versions that are strict."""
    unknown = sorted(set(request.params) - _PARAMETERS)
    if unknown and request.context.version >= _STRICT_PARAMETERS:
        raise BadRequest(
            f"Additional properties are not allowed ({unknown[0][:64]!r} was unexpected)"
        )


def _pattern(request: falcon.Request, name: str) -> str | None:
    """Return a parameter that is a regular expression."""
    text = request.get_param(name)
    try:
        re.compile(text or "")
    except re.error:
        raise BadRequest(
            f"Invalid input for query parameters {name}: no regular expression."
        ) from None
    if len(text or "") > _PATTERN_MAX:
        raise BadRequest(f"Invalid input for query parameters {name}: it is too long.")
    return text


def _number(request: falcon.Request, name: str, default: int) -> int:
    text = request.get_param(name)
    if text is None:
        return default
    if not text.isdigit():
        raise BadRequest(
            f"Invalid input for query parameters {name}. Value: {text}. "
            "It must be a whole number, zero or more."
        )
    return int(text)
