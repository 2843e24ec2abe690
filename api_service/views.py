# SPDX-License-Identifier: Apache-2.0
"""From our records to Nova's bodies, by microversion.

Each key that a version added stands in a table with that version; a body has
no key of our own, since clients validate replies strictly.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from api_service.microversions import MAXIMUM, MINIMUM, Version
from api_service.store.records import Agent, Instance, Job
from common.messages import Flavor
from common.states import TaskState, VmState

#: Nova's status by vm state, and by task state where that says more.
_STATUS = {
    VmState.ACTIVE: "ACTIVE",
    VmState.PAUSED: "PAUSED",
    VmState.SUSPENDED: "SUSPENDED",
    VmState.STOPPED: "SHUTOFF",
    VmState.ERROR: "ERROR",
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

_MIB_PER_GIB = 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who looks, from where, and in which version of the API."""

    base_url: str
    version: Version
    is_admin: bool
    #: May see where a server runs, and the other `OS-EXT-SRV-ATTR`.
    sees_hosts: bool
    #: The hosts whose agent is up, for `host_status`.
    live_hosts: frozenset[str] = frozenset()


def status_of(instance: Instance) -> str:
    """Return Nova's one word for where an instance stands."""
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
        "links": _links(viewer, "servers", instance.uuid),
    }


def server(instance: Instance, viewer: Viewer, *, show: bool) -> dict[str, Any]:
    """Return a server's body; `show` adds what only `GET /servers/{id}` has."""
    body = server_summary(instance, viewer) | _always(instance, viewer)
    if instance.task_state is not None:
        # Nova shows a progress that never moves; ours is there while there is one.
        body["progress"] = instance.progress
    if instance.vm_state is VmState.ERROR:
        body["fault"] = {
            "code": 500,
            "created": _time(instance.updated_at),
            "message": "An administrator holds the instance to be broken."
            if instance.in_error
            else "The guest has crashed.",
        }
    for since, until, for_whom, only_show, make in _KEYS:
        applies = since <= viewer.version <= until and for_whom(viewer)
        if applies and (show or not only_show):
            body |= make(instance, viewer)
    return body


def flavor(flavor_: Flavor, viewer: Viewer) -> dict[str, Any]:
    """Return a flavor's body, as `GET /flavors/{id}` has it."""
    body: dict[str, Any] = {
        "id": flavor_.name,
        "name": flavor_.name,
        "vcpus": flavor_.vcpus,
        "ram": flavor_.memory_mib,
        "disk": flavor_.disk_gib,
        "swap": flavor_.swap_mib or "",
        "OS-FLV-EXT-DATA:ephemeral": flavor_.ephemeral_gib,
        "OS-FLV-DISABLED:disabled": False,
        "os-flavor-access:is_public": True,
        "rxtx_factor": 1.0,
        "links": _links(viewer, "flavors", flavor_.name),
    }
    if viewer.version >= Version(2, 55):
        body["description"] = None
    if viewer.version >= Version(2, 61):
        body["extra_specs"] = {}
    if viewer.version >= Version(2, 75):
        body["swap"] = flavor_.swap_mib
    return body


def flavor_summary(flavor_: Flavor, viewer: Viewer) -> dict[str, Any]:
    """Return an entry of `GET /flavors`."""
    body = {
        "id": flavor_.name,
        "name": flavor_.name,
        "links": _links(viewer, "flavors", flavor_.name),
    }
    return body | ({"description": None} if viewer.version >= Version(2, 55) else {})


def service(agent: Agent, viewer: Viewer, *, up: bool) -> dict[str, Any]:
    """Return an agent as an entry of `GET /os-services`."""
    body: dict[str, Any] = {
        "id": service_id(agent.host) if viewer.version >= Version(2, 53) else _number(agent.host),
        "binary": "nova-compute",
        "host": agent.host,
        "zone": "nova",
        "status": "enabled",
        "state": "up" if up else "down",
        "updated_at": agent.last_seen_at.replace(tzinfo=None).isoformat(),
        "disabled_reason": None,
    }
    return body | ({"forced_down": False} if viewer.version >= Version(2, 11) else {})


def job(job_: Job) -> dict[str, Any]:
    """Return a job of `/v1/jobs`."""
    capture = job_.capture.to_wire() if job_.capture else None
    return {
        "id": job_.id,
        "kind": job_.kind,
        "state": job_.state,
        "instance_uuid": job_.instance_uuid,
        "project_id": job_.project_id,
        "user_id": job_.user_id,
        "image_id": job_.image_id or None,
        "step": job_.step,
        "progress": job_.bytes_done * 100 // job_.bytes_total if job_.bytes_total else 0,
        "bytes_done": job_.bytes_done,
        "bytes_total": job_.bytes_total,
        "rate_bytes_s": job_.rate_bytes_s,
        "eta_s": job_.eta_s,
        "size_bytes": job_.size_bytes,
        "sha512": job_.sha512,
        "capture": capture,
        "images": [image.to_wire() for image in job_.images],
        "options": {name: value for name, value in job_.options.items() if value is not None},
        "cancel_asked_at": _time(job_.cancel_asked_at) if job_.cancel_asked_at else None,
        "steps": [step.to_wire() for step in job_.steps],
        "reason": job_.reason,
        "reason_code": job_.reason_code,
        "created_at": _time(job_.created_at),
        "accepted_at": _time(job_.accepted_at) if job_.accepted_at else None,
        "finished_at": _time(job_.finished_at) if job_.finished_at else None,
    }


def version_document(version_id: str, base_url: str) -> dict[str, Any]:
    """Return one entry of the versions documents."""
    is_current = version_id == "v2.1"
    return {
        "id": version_id,
        "status": "CURRENT" if is_current else "SUPPORTED",
        "version": str(MAXIMUM) if is_current else "",
        "min_version": str(MINIMUM) if is_current else "",
        "updated": "2013-07-23T11:33:21Z" if is_current else "2011-01-21T11:33:21Z",
        "links": [{"rel": "self", "href": f"{base_url}/{'v2.1' if is_current else 'v2'}/"}],
    }


def service_id(host: str) -> str:
    """Return the UUID-shaped id of a host's agent; the same host has always the same."""
    digest = hashlib.sha256(host.encode()).hexdigest()
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))


def _always(instance: Instance, viewer: Viewer) -> dict[str, Any]:
    """What every version shows to everybody."""
    return {
        "status": status_of(instance),
        "tenant_id": instance.project_id,
        "user_id": instance.user_id,
        "metadata": {},
        "hostId": hashlib.sha224(f"{instance.project_id}{instance.host}".encode()).hexdigest(),
        "image": _image(instance, viewer),
        "created": _time(instance.created_at),
        "updated": _time(instance.updated_at),
        "addresses": {},
        "accessIPv4": "",
        "accessIPv6": "",
        "key_name": None,
        "config_drive": "",
        "OS-DCF:diskConfig": "MANUAL",
        "OS-EXT-AZ:availability_zone": "nova",
        "OS-EXT-STS:task_state": instance.task_state,
        "OS-EXT-STS:vm_state": str(instance.vm_state),
        "OS-EXT-STS:power_state": int(instance.power_state),
        "OS-SRV-USG:launched_at": instance.created_at.replace(tzinfo=None).isoformat(),
        "OS-SRV-USG:terminated_at": None,
        "os-extended-volumes:volumes_attached": [],
    }


Make = Callable[[Instance, Viewer], dict[str, Any]]


def _flavor_link(instance: Instance, viewer: Viewer) -> dict[str, Any]:
    name = instance.flavor.name
    return {"flavor": {"id": name, "links": [_links(viewer, "flavors", name)[1]]}}


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
        "OS-EXT-SRV-ATTR:host": instance.host,
        "OS-EXT-SRV-ATTR:hypervisor_hostname": instance.host,
        "OS-EXT-SRV-ATTR:instance_name": instance.domain_name,
    }


def _extended_attributes(instance: Instance, _viewer: Viewer) -> dict[str, Any]:
    return {
        "OS-EXT-SRV-ATTR:hostname": instance.name,
        "OS-EXT-SRV-ATTR:reservation_id": "",
        "OS-EXT-SRV-ATTR:launch_index": 0,
        "OS-EXT-SRV-ATTR:kernel_id": "",
        "OS-EXT-SRV-ATTR:ramdisk_id": "",
        "OS-EXT-SRV-ATTR:root_device_name": instance.root_device_name,
        "OS-EXT-SRV-ATTR:user_data": None,
    }


def _locked(instance: Instance, _viewer: Viewer) -> dict[str, Any]:
    return {"locked": instance.locked_by is not None}


def _locked_reason(instance: Instance, _viewer: Viewer) -> dict[str, Any]:
    return {"locked_reason": instance.locked_reason}


def _host_status(instance: Instance, viewer: Viewer) -> dict[str, Any]:
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
    (Version(2, 19), MAXIMUM, _everybody, False, _constant(description=None)),
    (Version(2, 26), MAXIMUM, _everybody, False, _constant(tags=[])),
    (Version(2, 63), MAXIMUM, _everybody, False, _constant(trusted_image_certificates=None)),
    (Version(2, 71), MAXIMUM, _everybody, True, _constant(server_groups=[])),
    (Version(2, 73), MAXIMUM, _everybody, False, _locked_reason),
    (
        Version(2, 90),
        MAXIMUM,
        _everybody,
        False,
        lambda instance, _viewer: {"OS-EXT-SRV-ATTR:hostname": instance.name},
    ),
    (Version(2, 96), MAXIMUM, _everybody, False, _constant(pinned_availability_zone=None)),
)


def _image(instance: Instance, viewer: Viewer) -> dict[str, Any] | str:
    if instance.image_ref is None:
        return ""
    bookmark = _links(viewer, "images", instance.image_ref)[1]
    return {"id": instance.image_ref, "links": [bookmark]}


def _links(viewer: Viewer, collection: str, item: str) -> list[dict[str, str]]:
    return [
        {"rel": "self", "href": f"{viewer.base_url}/v2.1/{collection}/{item}"},
        {"rel": "bookmark", "href": f"{viewer.base_url}/{collection}/{item}"},
    ]


def _number(host: str) -> int:
    return int(hashlib.sha256(host.encode()).hexdigest()[:7], 16)


def _time(value: dt.datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ")
