# SPDX-License-Identifier: Apache-2.0
"""What a list of servers is asked for: Nova's filters and orders, each in a table.

A filter says what Nova's says; one on what no server of ours has (addresses,
tags, key pairs) matches none.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping

import falcon
from oslo_utils import strutils

from api_service import views
from api_service.errors import BadRequest, Forbidden
from api_service.microversions import MINIMUM, Version
from api_service.resources import parameters
from api_service.resources.parameters import is_true, moment
from api_service.store.instance_lists import NEWEST_FIRST, InstanceQuery, Order

_STRICT_STATUS = Version(2, 38)
_TAGS = Version(2, 26)
_LOCKED = Version(2, 73)
_EVERYBODY = Version(2, 83)
_ZONE = "nova"
_GONE = "deleted"
_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)

#: Filters: the instance's field, and the version from which members have it, too; before, and
#: with None ever, it is an administrator's alone and ignored from others.
_EXACT: dict[str, tuple[str, Version | None]] = {
    "host": ("host", None),
    "node": ("host", None),
    "user_id": ("user_id", _EVERYBODY),
    "vm_state": ("vm_state", _EVERYBODY),
    "task_state": ("task_state", _EVERYBODY),
    "image": ("image_ref", MINIMUM),
    "image_ref": ("image_ref", None),
    "locked_by": ("locked_by", None),
    "auto_disk_config": ("disk_config", None),
    "reservation_id": ("reservation_id", MINIMUM),
}
_INTEGER_MAX = 2**31 - 1
_NUMBERS: dict[str, tuple[str, Version | None]] = {
    "power_state": ("power_state", _EVERYBODY),
    "progress": ("progress", _EVERYBODY),
    "launch_index": ("launch_index", None),
}
_PATTERNS: dict[str, tuple[str, Version | None]] = {
    "name": ("name", MINIMUM),
    "display_name": ("name", None),
    "hostname": ("hostname", None),
    "description": ("description", None),
    "display_description": ("description", None),
    "root_device_name": ("root_device_name", None),
    "access_ip_v4": ("access_ip_v4", None),
    "access_ip_v6": ("access_ip_v6", None),
}
_MOMENTS: dict[str, tuple[str, Version | None]] = {
    "created_at": ("created_at", _EVERYBODY),
    "launched_at": ("created_at", _EVERYBODY),
    "terminated_at": ("deleted_at", _EVERYBODY),
}
#: Filters on what is alike in all servers: whether a value matches them.
_CONSTANT: dict[str, tuple[Callable[[str], bool], Version | None]] = {
    "availability_zone": (lambda zone: zone == _ZONE, _EVERYBODY),
    "config_drive": (lambda value: value.lower() in ("", "0", "false"), _EVERYBODY),
    "key_name": (lambda _: False, _EVERYBODY),
    "kernel_id": (lambda value: not value, None),
    "ramdisk_id": (lambda value: not value, None),
    "soft_deleted": (lambda value: value.lower() in ("0", "false", "no"), None),
    "ip": (lambda _: False, MINIMUM),
    "ip6": (lambda _: False, Version(2, 5)),
    "tags": (lambda _: False, _TAGS),
    "tags-any": (lambda _: False, _TAGS),
}
_LOCKED_FILTER: dict[str, tuple[str, Version | None]] = {"locked": ("locked", _LOCKED)}

_OTHERS = frozenset(
    """
    all_tenants changes-before changes-since deleted flavor instance_type_id limit marker
    not-tags not-tags-any project_id sort_dir sort_key status tenant_id uuid
    """.split()  # noqa: SIM905 # as words it can be read
)
_TABLES: tuple[Mapping[str, object], ...] = (
    *(_EXACT, _NUMBERS, _PATTERNS, _MOMENTS, _CONSTANT, _LOCKED_FILTER),
)
#: What Nova's lists may be asked by.
PARAMETERS = _OTHERS.union(*_TABLES)

#: What Nova sorts by: our key; None: it is alike in all servers.
_SORT_KEYS: dict[str, str | None] = {
    **dict.fromkeys(
        """
        access_ip_v4 access_ip_v6 created_at host image_ref launch_index power_state progress
        project_id root_device_name task_state updated_at user_id uuid vm_state locked_by
        """.split(),  # noqa: SIM905
        None,
    ),
    "display_name": "name",
    "display_description": "description",
    "hostname": "hostname",
    "launched_at": "created_at",
    "terminated_at": "deleted_at",
    "node": "host",
}
_SORT_KEYS = {key: ours or key for key, ours in _SORT_KEYS.items()} | dict.fromkeys(
    """
    auto_disk_config availability_zone config_drive instance_type_id kernel_id key_name
    ramdisk_id
    """.split()  # noqa: SIM905
)
#: What Nova took before it checked, and has ignored since; 400 from 2.75 on.
_IGNORED_SORT_KEYS = frozenset(
    """
    architecture cell_name cleaned default_ephemeral_device default_swap_device deleted
    deleted_at disable_terminate ephemeral_gb ephemeral_key_uuid id key_data launched_on locked
    memory_mb os_type reservation_id root_gb shutdown_terminate user_data vcpus vm_mode
    """.split()  # noqa: SIM905
)
_ADMIN_SORT_KEYS = frozenset({"host", "node"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who asks, as far as it decides on the list."""

    request: falcon.Request
    is_admin: bool
    #: None: the servers of all projects.
    project_id: str | None

    def has(self, name: str, since: Version | None) -> bool:
        """Tell whether a filter is given and is this caller's to give."""
        is_members = since is not None and self.request.context.version >= since
        return name in self.request.params and (self.is_admin or is_members)

    def fields(self, table: Mapping[str, tuple[str, Version | None]]) -> dict[str, str]:
        """Return by their fields the parameters of a table that are given."""
        return {
            field: name
            for name, (field, since) in table.items()
            if self.has(name, since) and self.request.get_param(name) is not None
        }


def query_of(asked: Asked, marker: str | None, limit: int) -> InstanceQuery | None:
    """Return what is asked for; None if nothing can match.

    Raises BadRequest for what makes no sense, Forbidden for what is not the caller's to ask.
    """
    request = asked.request
    statuses = _statuses(asked)
    vm_states, task_states = views.states_of(statuses)
    since, before = parameters.changes(request)
    exact, numbers, moments = (asked.fields(one) for one in (_EXACT, _NUMBERS, _MOMENTS))
    # The state of what is gone is no state of a guest.
    gone = "DELETED" in statuses or (exact and _text(request, "vm_state") == _GONE)
    if gone:
        exact.pop("vm_state", None)
    query = InstanceQuery(
        project_id=asked.project_id,
        exactly={field: _text(request, name) for field, name in exact.items()}
        | {
            # Nothing has the largest that every database takes.
            field: min(parameters.number(request, name, 0), _INTEGER_MAX)
            for field, name in numbers.items()
        },
        at={field: _moment(request, name) for field, name in moments.items()},
        patterns={
            field: parameters.pattern(request, name) or ""
            for field, name in asked.fields(_PATTERNS).items()
        },
        flavor=request.get_param("flavor"),
        vm_states=vm_states,
        task_states=task_states,
        uuids=tuple(request.get_param_as_list("uuid") or ()),
        locked=is_true(request, "locked") if asked.fields(_LOCKED_FILTER) else None,
        deleted=True if gone else _deleted(asked, since or before, bool(statuses)),
        changed_since=since,
        changed_before=before,
        order=_order(asked),
        marker=marker,
        limit=limit,
    )
    no_such_status = statuses and not vm_states + task_states and query.deleted is False
    return None if limit == 0 or no_such_status or not _constants_match(asked) else query


def _statuses(asked: Asked) -> list[str]:
    """Return the statuses asked for, in Nova's spelling."""
    wanted = [status.upper() for status in asked.request.get_param_as_list("status") or ()]
    unknown = [status for status in wanted if status not in views.STATUSES]
    if unknown and asked.request.context.version >= _STRICT_STATUS:
        raise BadRequest(f"Invalid status value: {', '.join(unknown)[:255]}")
    by_state = asked.has("vm_state", _EVERYBODY) and _text(asked.request, "vm_state") == _GONE
    if ("DELETED" in wanted or by_state) and not asked.is_admin:
        raise Forbidden("Only administrators may list deleted instances")
    return wanted


def _deleted(asked: Asked, changed: dt.datetime | None, by_status: bool) -> bool | None:
    """Tell whether those that are gone are wanted; None: those, too.

    Who asks what has changed wants to learn of what was deleted.
    """
    if asked.is_admin and "deleted" in asked.request.params:
        return strutils.bool_from_string(_text(asked.request, "deleted"), default=False)
    return None if changed is not None and not by_status else False


def _constants_match(asked: Asked) -> bool:
    return all(
        matches(_text(asked.request, name))
        for name, (matches, since) in _CONSTANT.items()
        if asked.has(name, since)
    )


def _order(asked: Asked) -> tuple[Order, ...]:
    """Return Nova's order: what is asked for, then the newest first."""
    keys, directions = _sort_keys(asked), asked.request.get_param_as_list("sort_dir") or []
    if any(direction not in ("asc", "desc") for direction in directions):
        raise BadRequest("Unknown sort direction, must be one of: asc, desc")
    if len(directions) > len(keys) and keys:
        raise BadRequest("Sort direction array size exceeds sort key array size.")
    default = directions[0] if directions else "desc"
    directions = directions + [default] * (len(keys) - len(directions))
    order: dict[str, Order] = {}
    for key, direction in zip(keys, directions, strict=False):
        ours = _SORT_KEYS.get(key)
        if ours is not None:
            order.setdefault(ours, Order(key=ours, ascending=direction == "asc"))
    for last in NEWEST_FIRST:
        order.setdefault(last.key, Order(key=last.key, ascending=default == "asc"))
    return tuple(order.values())


def _sort_keys(asked: Asked) -> list[str]:
    """Return what is to be sorted by; raise BadRequest, or Forbidden for hosts."""
    version = asked.request.context.version
    keys: list[str] = asked.request.get_param_as_list("sort_key") or []
    ignored = _IGNORED_SORT_KEYS if version < parameters.STRICT else frozenset()
    if version >= _LOCKED:
        keys = ["locked_by" if key == "locked" else key for key in keys]
    for key in keys:
        if key not in ignored and key not in _SORT_KEYS:
            raise BadRequest(f"Invalid input for query parameters sort_key. Value: {key[:64]}.")
        if key in _ADMIN_SORT_KEYS and not asked.is_admin:
            raise Forbidden(f"Only administrators can sort servers by {key}")
    return [key for key in keys if key not in ignored]


def _text(request: falcon.Request, name: str) -> str:
    return request.get_param(name) or ""


def _moment(request: falcon.Request, name: str) -> dt.datetime:
    return moment(request, name) or _NEVER
