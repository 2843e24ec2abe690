# SPDX-License-Identifier: Apache-2.0
"""Agents and their hosts, as Nova shows its services and hypervisors, and as `/v1/hosts` does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from api_service.microversions import Version
from api_service.store.records import Agent, Guest
from api_service.views.viewer import Viewer, time_of

#: From here on ids are UUIDs, before numbers.
_UUIDS = Version(2, 53)
#: From here on Nova leaves resources to its Placement.
_NO_RESOURCES = Version(2, 88)
#: Clients insist on an address.
_UNKNOWN_IP = "0.0.0.0"  # noqa: S104 # nobody binds to it
#: From here on it is said of a hypervisor that nothing runs there.
_EMPTY_SERVERS = Version(2, 75)
_SUMMED = (
    *("current_workload", "free_disk_gb", "free_ram_mb", "local_gb", "local_gb_used"),
    *("memory_mb", "memory_mb_used", "running_vms", "vcpus", "vcpus_used"),
)


def service(agent: Agent, viewer: Viewer, *, up: bool) -> dict[str, Any]:
    """Return an agent as an entry of `GET /os-services`."""
    body: dict[str, Any] = {
        "id": service_id(agent.host) if viewer.version >= _UUIDS else _number(agent.host),
        "binary": "nova-compute",
        "host": agent.host,
        "zone": "nova",
        "status": "enabled",
        "state": "up" if up else "down",
        "updated_at": agent.last_seen_at.replace(tzinfo=None).isoformat(),
        "disabled_reason": None,
    }
    return body | ({"forced_down": False} if viewer.version >= Version(2, 11) else {})


def hypervisor_id(agent: Agent, viewer: Viewer) -> str | int:
    """Return the id of a hypervisor."""
    return service_id(agent.host) if viewer.version >= _UUIDS else _number(agent.host)


def hypervisor_summary(agent: Agent, viewer: Viewer, *, up: bool) -> dict[str, Any]:
    """Return an entry of `GET /os-hypervisors`."""
    return {
        "id": hypervisor_id(agent, viewer),
        "hypervisor_hostname": agent.hypervisor.hostname if agent.hypervisor else agent.host,
        "state": "up" if up else "down",
        "status": "enabled",
    }


def servers_of(guests: Sequence[Guest], viewer: Viewer) -> dict[str, Any]:
    """Return what runs on a hypervisor; where nothing does, not all versions say so."""
    servers = [{"uuid": guest.uuid, "name": guest.name} for guest in guests]
    return {"servers": servers} if servers or viewer.version >= _EMPTY_SERVERS else {}


def hypervisor(
    agent: Agent, viewer: Viewer, *, up: bool, guests: Sequence[Guest]
) -> dict[str, Any]:
    """Return a hypervisor's body; what we do not know of a host is 0, as Nova has it then."""
    known = agent.hypervisor
    body = hypervisor_summary(agent, viewer, up=up) | {
        "host_ip": (known.host_ip if known else None) or _UNKNOWN_IP,
        "hypervisor_type": known.type if known else "",
        "hypervisor_version": known.version if known else 0,
        "service": {"host": agent.host, "id": service(agent, viewer, up=up)["id"]}
        | {"disabled_reason": None},
    }
    if viewer.version >= _NO_RESOURCES:
        return body | {"uptime": None}
    cpu_info: dict[str, Any] | str = {} if viewer.version >= Version(2, 28) else ""
    memory_mib = known.memory_mib if known else 0
    used_mib = sum(guest.flavor.memory_mib for guest in guests)
    return body | {
        "cpu_info": cpu_info,
        "current_workload": 0,
        "disk_available_least": None,
        "free_disk_gb": 0,
        "free_ram_mb": memory_mib - used_mib,
        "local_gb": 0,
        "local_gb_used": 0,
        "memory_mb": memory_mib,
        "memory_mb_used": used_mib,
        "running_vms": len(guests),
        "vcpus": known.vcpus if known else 0,
        "vcpus_used": sum(guest.flavor.vcpus for guest in guests),
    }


def hypervisor_statistics(hypervisors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the bodies of hypervisors as one."""
    summed = {name: sum(one[name] for one in hypervisors) for name in _SUMMED}
    return summed | {"count": len(hypervisors), "disk_available_least": None}


def host(agent: Agent, *, up: bool, instances: int) -> dict[str, Any]:
    """Return a host of `/v1/hosts`."""
    newest = agent.open_jobs[-1] if agent.open_jobs else None
    return {
        "host": agent.host,
        "state": "up" if up else "down",
        "release": agent.release,
        "rpc_version": agent.rpc_version,
        "hypervisor": agent.hypervisor.to_wire() if agent.hypervisor else None,
        "instances": instances,
        "open_jobs": sorted(newest.jobs) if newest else [],
        "started_at": time_of(agent.started_at),
        "last_seen_at": time_of(agent.last_seen_at),
        "clock_offset_s": agent.clock_offset_s,
    }


def service_id(host: str) -> str:
    """Return the UUID-shaped id of a host's agent; the same host has always the same."""
    digest = hashlib.sha256(host.encode()).hexdigest()
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))


def _number(host: str) -> int:
    return int(hashlib.sha256(host.encode()).hexdigest()[:7], 16)
