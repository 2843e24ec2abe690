# SPDX-License-Identifier: Apache-2.0
"""On which host a new instance shall be: one whose agent lives and that has room.

What is known of a host is what its heartbeats told; its agent looks again before
it makes anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from api_service.agents import Agents
from api_service.store.inventory import Inventory
from api_service.store.records import Agent, Guest
from common.reports import Flavor

#: The first version of the interface in which agents make instances.
_SINCE = (1, 4)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """How much of instances a host takes for as much of its own."""

    cpu: float = 16.0
    memory: float = 1.0
    reserved_memory_mib: int = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Chooses hosts."""

    agents: Agents
    inventory: Inventory
    ratios: Ratios = dataclasses.field(default_factory=Ratios)

    def choose(
        self, flavor: Flavor, wanted: str | None = None, networks: Sequence[str] = ()
    ) -> str | None:
        """Return the host with the most memory left, or `wanted`, if it can; None: none can.

        It must have all these networks, by name or id.
        """
        guests = self.inventory.guests_by_host()
        rooms = [
            (room, agent.host)
            for agent in self.agents.live().values()
            if wanted in (None, agent.host)
            and all(_has(agent, network) for network in networks)
            and (room := self._memory_left(agent, guests.get(agent.host, []), flavor)) >= 0
        ]
        return max(rooms, default=(0, None))[1]

    def host_called(self, name: str) -> str | None:
        """Return the live host whose agent, or whose hypervisor, has this name."""
        for agent in self.agents.live().values():
            if name in (agent.host, agent.hypervisor.hostname if agent.hypervisor else None):
                return agent.host
        return None

    def unknown(self, networks: Sequence[str], wanted: str | None = None) -> str | None:
        """Return the first of these networks that no live host, or not `wanted`, has."""
        hosts = [one for one in self.agents.live().values() if wanted in (None, one.host)]
        if not hosts:
            return None  # nobody says so
        return next((one for one in networks if not any(_has(host, one) for host in hosts)), None)

    def _memory_left(self, agent: Agent, guests: Sequence[Guest], flavor: Flavor) -> float:
        """Return the MiB that would be left; below 0 where there is no room."""
        host = agent.hypervisor
        if host is None or _version_of(agent) < _SINCE:
            return -1
        vcpus = sum(guest.flavor.vcpus for guest in guests) + flavor.vcpus
        has_disk = host.free_disk_gib is None or host.free_disk_gib >= flavor.disk_gib
        if vcpus > host.vcpus * self.ratios.cpu or not has_disk:
            return -1
        usable_mib = (host.memory_mib - self.ratios.reserved_memory_mib) * self.ratios.memory
        return usable_mib - sum(guest.flavor.memory_mib for guest in guests) - flavor.memory_mib


def _has(agent: Agent, network: str) -> bool:
    """Tell whether a host has a network; an older agent, which does not say, looks itself."""
    known = agent.hypervisor.networks if agent.hypervisor else None
    return known is None or network in known or network in known.values()


def _version_of(agent: Agent) -> tuple[int, ...]:
    words = agent.rpc_version.split(".")
    return tuple(int(word) for word in words) if all(map(str.isdecimal, words)) else (0,)
