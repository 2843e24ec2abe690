# SPDX-License-Identifier: Apache-2.0
"""Servers, by microversion: each key that a version added stands in a table with that version."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from api_service.microversions import MAXIMUM, MINIMUM, Version
from api_service.store.records import Instance
from api_service.views.viewer import Viewer, links, time_of
from common.states import TaskState, VmState

#: Nova's status by vm state, and by task state where that says more.
_STATUS = {
    VmState.ACTIVE: "ACTIVE",
    VmState.PAUSED: "PAUSED",
    VmState.SUSPENDED: "SUSPENDED",
    VmState.STOPPED: "SHUTOFF",
    VmState.ERROR: "ERROR",
    VmState.BUILDING: "BUILD",
}
_REBUILDING = {
    TaskState.REBUILDING,
    TaskState.REBUILD_BLOCK_DEVICE_MAPPING,
    TaskState.REBUILD_SPAWNING,
}
_VM_STATES_OF_STATUS = {status: str(vm_state) for vm_state, status in _STATUS.items()}
#: Every status of Nova's; instances of ours are never in most of those that we do not make.
STATUSES = frozenset(
    """
    ACTIVE BUILD DELETED ERROR HARD_REBOOT MIGRATING PASSWORD PAUSED REBOOT REBUILD RESCUE RESIZE
    REVERT_RESIZE SHELVED SHELVED_OFFLOADED SHUTOFF SOFT_DELETED SUSPENDED UNKNOWN VERIFY_RESIZE
    """.split()  # noqa: SIM905 # as words it can be read
)

#: What Nova repeats from a rebuild's request; here there is nothing to repeat.
_REBUILD_KEYS = ((Version(2, 54), "key_name"), (Version(2, 57), "user_data"))
_WHOLE_ANSWER = Version(2, 75)
_IMAGE_PROPERTIES = Version(2, 98)
#: What Nova's own schema lets stand there.
_PROPERTY = re.compile(r"[a-zA-Z0-9_:. ]{1,255}")
_PROPERTY_MAX = 255
_HOSTNAME_MAX = 63
#: Keys that came with Nova's extensions.
_EXTENSIONS = (
    *("OS-EXT-", "OS-SRV-USG:", "os-extended-volumes:"),
    *("config_drive", "key_name", "host_status"),
)


def status_of(instance: Instance) -> str:
    """Return Nova's one word for where an instance stands."""
    if instance.deleted_at is not None:
        return "DELETED"
    return "REBUILD" if instance.task_state in _REBUILDING else _STATUS[instance.vm_state]


def states_of(statuses: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the vm states and the task states that are shown as one of these statuses."""
    wanted = set(statuses)
    vm_states = tuple(sorted(_VM_STATES_OF_STATUS[one] for one in wanted & {*_STATUS.values()}))
    return vm_states, tuple(sorted(_REBUILDING)) if "REBUILD" in wanted else ()


def server_summary(instance: Instance, viewer: Viewer) -> dict[str, Any]:
    """Return an entry of `GET /servers`."""
    return {
        "id": instance.uuid,
        "name": instance.name,
        "links": links(viewer, "servers", instance.uuid),
    }


def server(instance: Instance, viewer: Viewer, *, show: bool) -> dict[str, Any]:
    """Return a server's body; `show` adds what only `GET /servers/{id}` has."""
    body = server_summary(instance, viewer) | _always(instance, viewer)
    if instance.task_state is not None:
        # Nova shows a progress that never moves; ours is there while there is one.
        body["progress"] = instance.progress
    if instance.vm_state is VmState.ERROR and instance.deleted_at is None:
        body["fault"] = {
            "code": 500,
            "created": time_of(instance.updated_at),
            "message": _why_broken(instance),
        }
    for since, until, for_whom, only_show, make in _KEYS:
        applies = since <= viewer.version <= until and for_whom(viewer)
        if applies and (show or not only_show):
            body |= make(instance, viewer)
    return body


def created_server(instance_uuid: str, disk_config: str | None, viewer: Viewer) -> dict[str, Any]:
    """Return the body that answers `POST /servers`."""
    return {
        "id": instance_uuid,
        "links": links(viewer, "servers", instance_uuid),
        "OS-DCF:diskConfig": disk_config or "MANUAL",
        "security_groups": [{"name": "default"}],
    }


def updated_server(instance: Instance, viewer: Viewer) -> dict[str, Any]:
    """Return the body that answers a change: all of it from 2.75 on, before what the core had."""
    body = server(instance, viewer, show=True)
    if viewer.version >= _WHOLE_ANSWER:
        return body
    return {key: value for key, value in body.items() if not key.startswith(_EXTENSIONS)}


def _why_broken(instance: Instance) -> str:
    if not instance.in_error:
        return "The guest has crashed."
    return instance.fault or "An administrator holds the instance to be broken."


def rebuilt_server(instance: Instance, viewer: Viewer) -> dict[str, Any]:
    """Return the body that answers a rebuild: an update's, and what it may have changed.

    As in Nova's, `user_data` takes the place of the extension's key of that name.
    """
    body = updated_server(instance, viewer)
    body.pop("OS-EXT-SRV-ATTR:user_data", None)
    for since, name in _REBUILD_KEYS:
        if viewer.version >= since:
            body[name] = None
    return body


def _always(instance: Instance, viewer: Viewer) -> dict[str, Any]:
    """What every version shows to everybody."""
    is_there = instance.deleted_at is None
    return {
        "status": status_of(instance),
        "tenant_id": instance.project_id,
        "user_id": instance.user_id,
        "metadata": instance.metadata,
        "hostId": _host_id(instance),
        "image": _image(instance, viewer),
        "created": time_of(instance.created_at),
        "updated": time_of(instance.updated_at),
        "addresses": {},
        "accessIPv4": instance.access_ip_v4 or "",
        "accessIPv6": instance.access_ip_v6 or "",
        "key_name": None,
        "config_drive": "",
        "OS-DCF:diskConfig": instance.disk_config or "MANUAL",
        "OS-EXT-AZ:availability_zone": "nova",
        "OS-EXT-STS:task_state": instance.task_state,
        "OS-EXT-STS:vm_state": str(instance.vm_state) if is_there else "deleted",
        "OS-EXT-STS:power_state": int(instance.power_state) if is_there else 0,
        "OS-SRV-USG:launched_at": _exact_time(
            None if instance.is_unlaunched else instance.launched_at or instance.created_at
        ),
        "OS-SRV-USG:terminated_at": _exact_time(instance.deleted_at),
        "os-extended-volumes:volumes_attached": [],
    }


def _host_id(instance: Instance) -> str:
    if not instance.host:
        return ""
    return hashlib.sha224(f"{instance.project_id}{instance.host}".encode()).hexdigest()


def _exact_time(value: dt.datetime | None) -> str | None:
    return value.replace(tzinfo=None).isoformat(timespec="microseconds") if value else None


Make = Callable[[Instance, Viewer], dict[str, Any]]


def _flavor_link(instance: Instance, viewer: Viewer) -> dict[str, Any]:
    name = instance.flavor.name
    return {"flavor": {"id": name, "links": [links(viewer, "flavors", name)[1]]}}


def _flavor_embedded(instance: Instance, _viewer: Viewer) -> dict[str, Any]:
    known = instance.flavor
    return {
        "flavor": {
            "vcpus": known.vcpus,
            "ram": known.memory_mib,
            "disk": known.disk_gib,
            "ephemeral": known.ephemeral_gib,
            "swap": known.swap_mib,
            "original_name": known.name,
            "extra_specs": {},
        }
    }


def _where_it_runs(instance: Instance, _viewer: Viewer) -> dict[str, Any]:
    return {
        "OS-EXT-SRV-ATTR:host": instance.host or None,
        "OS-EXT-SRV-ATTR:hypervisor_hostname": instance.host or None,
        "OS-EXT-SRV-ATTR:instance_name": instance.domain_name,
    }


def _hostname(instance: Instance, _viewer: Viewer) -> dict[str, Any]:
    """What its user said, or what Nova makes of a name."""
    made = re.sub(r"[^\w.-]", "", instance.name.replace(" ", "-").replace("_", "-")).lower()
    return {"OS-EXT-SRV-ATTR:hostname": instance.hostname or made.strip(".-")[:_HOSTNAME_MAX]}


def _extended_attributes(instance: Instance, viewer: Viewer) -> dict[str, Any]:
    return _hostname(instance, viewer) | {
        "OS-EXT-SRV-ATTR:reservation_id": instance.reservation_id,
        "OS-EXT-SRV-ATTR:launch_index": instance.launch_index,
        "OS-EXT-SRV-ATTR:kernel_id": "",
        "OS-EXT-SRV-ATTR:ramdisk_id": "",
        "OS-EXT-SRV-ATTR:root_device_name": instance.root_device_name,
        "OS-EXT-SRV-ATTR:user_data": None,
    }


def _locked(instance: Instance, _viewer: Viewer) -> dict[str, Any]:
    return {"locked": instance.locked_by is not None}


def _locked_reason(instance: Instance, _viewer: Viewer) -> dict[str, Any]:
    return {"locked_reason": instance.locked_reason}


def _description(instance: Instance, _viewer: Viewer) -> dict[str, Any]:
    return {"description": instance.description}


def _host_status(instance: Instance, viewer: Viewer) -> dict[str, Any]:
    if not instance.host:
        return {"host_status": ""}
    return {"host_status": "UP" if instance.host in viewer.live_hosts else "UNKNOWN"}


def _constant(**values: Any) -> Make:
    return lambda _instance, _viewer: dict(values)


def _everybody(_viewer: Viewer) -> bool:
    return True


def _admins(viewer: Viewer) -> bool:
    return viewer.is_admin


def _who_sees_hosts(viewer: Viewer) -> bool:
    return viewer.sees_hosts


#: (from version, to version, for whom, only in show, what it adds)
_KEYS: tuple[tuple[Version, Version, Callable[[Viewer], bool], bool, Make], ...] = (
    (MINIMUM, Version(2, 46), _everybody, False, _flavor_link),
    (Version(2, 47), MAXIMUM, _everybody, False, _flavor_embedded),
    (MINIMUM, MAXIMUM, _who_sees_hosts, False, _where_it_runs),
    (Version(2, 3), MAXIMUM, _who_sees_hosts, False, _extended_attributes),
    (Version(2, 9), MAXIMUM, _everybody, False, _locked),
    (Version(2, 16), MAXIMUM, _admins, False, _host_status),
    (Version(2, 19), MAXIMUM, _everybody, False, _description),
    (Version(2, 26), MAXIMUM, _everybody, False, _constant(tags=[])),
    (Version(2, 63), MAXIMUM, _everybody, False, _constant(trusted_image_certificates=None)),
    (Version(2, 71), MAXIMUM, _everybody, True, _constant(server_groups=[])),
    (Version(2, 73), MAXIMUM, _everybody, False, _locked_reason),
    (Version(2, 90), MAXIMUM, _everybody, False, _hostname),
    (Version(2, 96), MAXIMUM, _everybody, False, _constant(pinned_availability_zone=None)),
    (Version(2, 100), MAXIMUM, _everybody, False, _constant(scheduler_hints={})),
)


def _image(instance: Instance, viewer: Viewer) -> dict[str, Any] | str:
    if instance.image_ref is None:
        return ""
    bookmark = links(viewer, "images", instance.image_ref)[1]
    image: dict[str, Any] = {"id": instance.image_ref, "links": [bookmark]}
    if viewer.version >= _IMAGE_PROPERTIES:
        known = instance.image_properties.items()
        image["properties"] = {
            name: value[:_PROPERTY_MAX] for name, value in known if _PROPERTY.fullmatch(name)
        }
    return image
