# SPDX-License-Identifier: Apache-2.0
"""Which agents live: the one place that knows how long a silence means death."""

from __future__ import annotations

import datetime as dt

from api_service.errors import Conflict, NotFound
from api_service.store.inventory import Inventory
from api_service.store.records import Agent, Job
from common import clock
from common.errors import AgentUnavailable
from common.messages import RPC_VERSION

#: Between an agent's word that it has a job and the first list that must name it.
_LIST_MARGIN = dt.timedelta(seconds=10)
_LISTS = 2
#: A heartbeat may be on its way for so long.
_CLOCKS_AGREE_S = 10.0


class Agents:
    """The agents of the cloud, by their heartbeats."""

    def __init__(self, inventory: Inventory, down_after_s: float) -> None:
        self.inventory = inventory
        self._down_after = dt.timedelta(seconds=down_after_s)

    def is_up(self, agent: Agent) -> bool:
        """Tell whether the agent was heard of lately."""
        # Ahead of now it lies only where our clock was put back.
        return abs(clock.now() - agent.last_seen_at) <= self._down_after

    def all(self) -> list[Agent]:
        """Return every agent ever seen."""
        return self.inventory.agents()

    def forget(self, host: str) -> int:
        """Forget a host that is gone for good, and its instances; return how many those were.

        Raises NotFound for a host that was never seen, and Conflict for one that is up.
        """
        agent = self.inventory.agent(host)
        if agent is None:
            raise NotFound(f"No compute agent was ever heard of on host {host}.")
        if self.is_up(agent):
            raise Conflict(
                f"The compute agent of host {host} is up; stop it, and wait for service_down_time "
                f"({self._down_after.total_seconds():.0f} s)."
            )
        return self.inventory.forget_host(host)

    def live_hosts(self) -> frozenset[str]:
        """Return the hosts whose agent is up."""
        return frozenset(self.live())

    def live(self) -> dict[str, Agent]:
        """Return the agents that are up, by host."""
        return {agent.host: agent for agent in self.all() if self.is_up(agent)}

    def clock_offset_s(self, host: str) -> float:
        """Return how far a host's clock is ahead of ours; 0 where that is not known, or little."""
        agent = self.inventory.agent(host)
        offset_s = agent.clock_offset_s if agent and agent.clock_offset_s else 0.0
        return offset_s if abs(offset_s) > _CLOCKS_AGREE_S else 0.0

    def require_up(self, host: str) -> None:
        """Raise AgentUnavailable, in a tenant's words, unless the host's agent can take a job."""
        agent = self.inventory.agent(host)
        if agent is None or not self.is_up(agent):
            raise AgentUnavailable(
                "the compute agent of this instance's host is not up; try again when it is"
            )
        if agent.rpc_version.partition(".")[0] != RPC_VERSION.partition(".")[0]:
            raise AgentUnavailable(
                "the compute agent of this instance's host speaks another version "
                f"({agent.rpc_version}, this API {RPC_VERSION}); the operator must upgrade one"
            )


def has_lost(agent: Agent, job: Job) -> bool:
    """Tell whether an agent does not know a job any more that it had accepted.

    Two complete lists in a row must lack it, each made (by the host's clock) and
    taken (by ours) after the last that was heard of the job: one alone may have
    waited in a queue, and a host's clock may be put back.
    """
    said = [one for one in (job.accepted_at, job.progress_at) if one is not None]
    if not said or job.reported_at is None or len(agent.open_jobs) < _LISTS:
        return False
    since, heard_at = max(said) + _LIST_MARGIN, job.reported_at
    return all(
        job.id not in one.jobs and one.at > since and one.taken_at > heard_at
        for one in agent.open_jobs
    )
