# SPDX-License-Identifier: Apache-2.0
"""On which host a new instance shall be: one whose agent lives and that has room.

What is known of a host is what its heartbeats told; its agent looks again before
it makes anything.
"""

from __future__ import annotations

import dataclasses
import math
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

    def choose(self, flavor: Flavor, wanted: str | None = None) -> str | None:
        """Return the host with the most memory left, or `wanted`, if it can; None: none can."""
        return next(iter(self.choose_many(flavor, 1, wanted)), None)

    def choose_many(
        self, flavor: Flavor, most: int, wanted: str | None = None, networks: Sequence[str] = ()
    ) -> list[str]:
        """Return a host for each of so many instances, or for as many as there is room for.

        Each has all these networks, by name or id.
        """
        guests = self.inventory.guests_by_host()
        rooms = {
            agent.host: self._room(agent, guests.get(agent.host, []), flavor)
            for agent in self.agents.live().values()
            if wanted in (None, agent.host) and all(_has(agent, network) for network in networks)
        }
        chosen: list[str] = []
        for _ in range(most):
            able = [(room.memory_mib, host) for host, room in rooms.items() if room.times > 0]
            if not able:
                break
            memory_mib, host = max(able)
            times = rooms[host].times - 1
            rooms[host] = _Room(memory_mib=memory_mib - flavor.memory_mib, times=times)
            chosen.append(host)
        return chosen

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

    def _room(self, agent: Agent, guests: Sequence[Guest], flavor: Flavor) -> _Room:
        host = agent.hypervisor
        if host is None or _version_of(agent) < _SINCE:
            return _Room(memory_mib=0, times=0)
        usable_mib = (host.memory_mib - self.ratios.reserved_memory_mib) * self.ratios.memory
        memory_mib = usable_mib - sum(guest.flavor.memory_mib for guest in guests)
        vcpus = host.vcpus * self.ratios.cpu - sum(guest.flavor.vcpus for guest in guests)
        disk_gib = math.inf if host.free_disk_gib is None else host.free_disk_gib
        needs = (
            (memory_mib, flavor.memory_mib),
            (vcpus, flavor.vcpus),
            (disk_gib, flavor.disk_gib),
        )
        return _Room(memory_mib=memory_mib, times=min(_times(*need) for need in needs))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What a host has left, and how many instances of a flavor that is enough for."""

    memory_mib: float
    times: float


def _times(left: float, each: int) -> float:
    if each == 0:
        return math.inf if left >= 0 else 0
    return left // each if left < math.inf else math.inf


def _has(agent: Agent, network: str) -> bool:
    """Tell whether a host has a network; an older agent, which does not say, looks itself."""
    known = agent.hypervisor.networks if agent.hypervisor else None
    return known is None or network in known or network in known.values()


def _version_of(agent: Agent) -> tuple[int, ...]:
    words = agent.rpc_version.split(".")
    return tuple(int(word) for word in words) if all(map(str.isdecimal, words)) else (0,)
