# SPDX-License-Identifier: Apache-2.0
"""Agents and their hosts, as Nova shows its services and hypervisors, and as `/v1/hosts` does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from api_service.microversions import Version
from api_service.store.records import Agent
from api_service.views.viewer import Viewer, time_of
from common.messages import Flavor

#: From here on ids are UUIDs, before numbers.
_UUIDS = Version(2, 53)
#: From here on Nova leaves resources to its Placement.
_NO_RESOURCES = Version(2, 88)
#: Clients insist on an address.
_UNKNOWN_IP = "0.0.0.0"  # noqa: S104 # nobody binds to it


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


def hypervisor_summary(agent: Agent, viewer: Viewer, *, up: bool) -> dict[str, Any]:
    """Return an entry of `GET /os-hypervisors`."""
    return {
        "id": service_id(agent.host) if viewer.version >= _UUIDS else _number(agent.host),
        "hypervisor_hostname": agent.hypervisor.hostname if agent.hypervisor else agent.host,
        "state": "up" if up else "down",
        "status": "enabled",
    }


def hypervisor(
    agent: Agent, viewer: Viewer, *, up: bool, instances: Sequence[Flavor]
) -> dict[str, Any]:
    """Return a hypervisor's body, `instances` being the sizes of those that it has.

    Agents do not report disks: those figures are 0, as Nova has them of a host that
    it knows nothing of.
    """
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
    memory_used_mib = sum(flavor.memory_mib for flavor in instances)
    return body | {
        "cpu_info": cpu_info,
        "current_workload": 0,
        "disk_available_least": None,
        "free_disk_gb": 0,
        "free_ram_mb": memory_mib - memory_used_mib,
        "local_gb": 0,
        "local_gb_used": 0,
        "memory_mb": memory_mib,
        "memory_mb_used": memory_used_mib,
        "running_vms": len(instances),
        "vcpus": known.vcpus if known else 0,
        "vcpus_used": sum(flavor.vcpus for flavor in instances),
    }


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
