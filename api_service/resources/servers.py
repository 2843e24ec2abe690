# SPDX-License-Identifier: Apache-2.0
"""`/servers`: lists and single ones, as Nova shows them."""

from __future__ import annotations

import urllib.parse

import falcon

from api_service import schemas, views
from api_service.errors import BadRequest
from api_service.microversions import Version
from api_service.resources.services import Resource, is_uuid
from api_service.store.engine import compiled
from api_service.store.inventory import InstanceQuery
from api_service.store.records import Instance

_STRICT_STATUS = Version(2, 38)
_STRICT_PARAMETERS = Version(2, 75)
_PATTERN_MAX = 255
_NUMBER_MAX_DIGITS = 18
_EVERYBODY_FILTERS = Version(2, 83)
_LOCKED_FILTER = Version(2, 73)

#: Filters by an exact value that administrators have: the instance's field, and the version
#: from which members have it too.
_EXACT: dict[str, Version | None] = {
    "host": None,
    "user_id": _EVERYBODY_FILTERS,
    "vm_state": _EVERYBODY_FILTERS,
    "task_state": _EVERYBODY_FILTERS,
}
#: Filters that, when true, nothing of ours matches: deleted instances are not listed.
#: Others may have them as above.
_NONE_IS: dict[str, Version | None] = {"deleted": None, "soft_deleted": None}
_LOCKED: dict[str, Version | None] = {"locked": _LOCKED_FILTER}
_FALSE = ("0", "false", "f", "no", "n", "off")

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
        is_admin = self.services.authorizer.is_admin(self.caller(request))
        limit = min(_number(request, "limit", self.services.max_limit), self.services.max_limit)
        project_id, matchable = self._project(request, is_admin)
        statuses = _statuses(request)
        name_pattern = _pattern(request, "name")
        marker = self._marker(request, project_id)
        matchable = matchable and not any(
            _is_true(request, name) for name in _may_filter(request, _NONE_IS, is_admin)
        )
        vm_states, task_states = views.states_of(statuses)
        if limit == 0 or not matchable or (statuses and not vm_states + task_states):
            return None
        return InstanceQuery(
            project_id=project_id,
            exactly={
                name: request.get_param(name) or ""
                for name in _may_filter(request, _EXACT, is_admin)
            },
            name_pattern=name_pattern,
            vm_states=vm_states,
            task_states=task_states,
            uuids=tuple(request.get_param_as_list("uuid") or ()),
            locked=_is_true(request, "locked") if _may_filter(request, _LOCKED, is_admin) else None,
            marker=marker,
            limit=limit,
        )

    def _project(self, request: falcon.Request, is_admin: bool) -> tuple[str | None, bool]:
        """Return the project to list, None for all, and whether anything can match."""
        scope = None if self._all_tenants(request) else self.caller(request).project_id
        given = request.get_param("project_id") or request.get_param("tenant_id")
        wanted = given if is_admin else None
        return wanted or scope, wanted is None or scope in (None, wanted)

    def _all_tenants(self, request: falcon.Request) -> bool:
        asked = _is_true(request, "all_tenants")
        if asked:
            rule = "os_compute_api:servers:index:get_all_tenants"
            self.services.authorizer.require(self.caller(request), rule)
        return asked

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

    def on_put(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """Give it another name or description."""
        body = schemas.read_body(request)
        schemas.validate(schemas.update_server(request.context.version), body)
        rule = "os_compute_api:servers:update"
        instance = self.visible_instance(request, server_id, rule)
        asked = body["server"]
        changes = {name: asked[name] for name in ("name", "description") if name in asked}
        if changes:
            self.services.overrides.describe(instance.uuid, changes)
        changed = self.visible_instance(request, server_id, rule)
        response.media = {"server": views.updated_server(changed, self.viewer(request))}


def _require_known_parameters(request: falcon.Request) -> None:
    """Raise BadRequest for a parameter that Nova has not, in the versions that are strict."""
    unknown = sorted(set(request.params) - _PARAMETERS)
    if unknown and request.context.version >= _STRICT_PARAMETERS:
        raise BadRequest(
            f"Additional properties are not allowed ({unknown[0][:64]!r} was unexpected)"
        )


def _may_filter(
    request: falcon.Request, filters: dict[str, Version | None], is_admin: bool
) -> list[str]:
    """Return those of the filters that are given and that this caller has; others are ignored."""
    version = request.context.version
    return [
        name
        for name, since in filters.items()
        if name in request.params and (is_admin or (since is not None and version >= since))
    ]


def _is_true(request: falcon.Request, name: str) -> bool:
    """Tell whether a parameter is given and does not say no, in whatever spelling."""
    values = request.get_param_as_list(name) or ["0"]
    return str(values[0]).lower() not in _FALSE


def _statuses(request: falcon.Request) -> list[str]:
    """Return the statuses asked for, in Nova's spelling."""
    wanted = [status.upper() for status in request.get_param_as_list("status") or ()]
    unknown = [status for status in wanted if status not in views.STATUSES]
    if unknown and request.context.version >= _STRICT_STATUS:
        raise BadRequest(f"Invalid status value: {', '.join(unknown)[:_PATTERN_MAX]}")
    return wanted


def _pattern(request: falcon.Request, name: str) -> str | None:
    """Return a parameter that is a regular expression, anchored or not, as Nova takes it.

    What cannot be matched in linear time (back references, look-around) is
    refused as what is no regular expression: 400. The length is looked at first.
    """
    text = request.get_param(name)
    if text is None:
        return None
    if len(text) > _PATTERN_MAX:
        raise BadRequest(f"Invalid input for query parameters {name}: it is too long.")
    try:
        compiled(text)
    except ValueError as error:
        raise BadRequest(f"Invalid input for query parameters {name}: {error}.") from None
    return text


def _number(request: falcon.Request, name: str, default: int) -> int:
    text = request.get_param(name)
    if text is None:
        return default
    # `isdigit` alone is also true of a superscript two.
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBER_MAX_DIGITS):
        raise BadRequest(
            f"Invalid input for query parameters {name}. Value: {text[:_PATTERN_MAX]}. "
            "It must be a whole number, zero or more."
        )
    return int(text)
