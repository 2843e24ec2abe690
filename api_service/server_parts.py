# SPDX-License-Identifier: Apache-2.0
"""Wires what makes, deletes and tries out, from CONF: a part of the composition root.

`app` puts it into the API, `manage` takes what its commands need.
"""

from __future__ import annotations

from oslo_config import cfg

from api_service import flavor_table
from api_service.agent_client import AgentClient
from api_service.agents import Agents
from api_service.dispatcher import Dispatcher
from api_service.image_checks import ImageLooks
from api_service.lifecycle import Lifecycle
from api_service.placement import Placement, Ratios
from api_service.snapshots import Snapshots
from api_service.store.ledger import Ledger
from api_service.store.lifecycles import Lifecycles
from api_service.verifications import Verifications
from common import rpc
from common.messages import COMPUTE_TOPIC, RPC_VERSION

_RPC_TIMEOUT_S = 30.0


def dispatcher_over(transport: rpc.Transport, ledger: Ledger, agents: Agents) -> Dispatcher:
    """Return what casts jobs to agents."""
    client = transport.client(topic=COMPUTE_TOPIC, version=RPC_VERSION, timeout_s=_RPC_TIMEOUT_S)
    return Dispatcher(ledger, AgentClient(client, agents.clock_offset_s))


def make_lifecycle(settings: cfg.ConfigOpts, beside: Snapshots) -> Lifecycle:
    """Return what makes instances and deletes them, over what snapshots are made with.

    Raises ConfigurationError if [spawn] flavors cannot be read.
    """
    group, most = settings.spawn, settings.quota.instances
    return Lifecycle(
        ledger=beside.ledger,
        lifecycles=Lifecycles(beside.ledger.database),
        inventory=beside.agents.inventory,
        agents=beside.agents,
        placement=_placement(settings, beside.agents),
        images=beside.images,
        accept_timeout_s=settings.api.job_accept_timeout,
        quotas=beside.quotas,
        most_instances=None if most < 0 else most,
        flavors=flavor_table.read(group.flavors),
        default_network=group.default_network,
        deletes_announced=group.delete_announced,
    )


def make_verifications(
    settings: cfg.ConfigOpts, agents: Agents, images: ImageLooks
) -> Verifications:
    """Return what has images tried out."""
    return Verifications(
        lifecycles=Lifecycles(agents.inventory.database),
        placement=_placement(settings, agents),
        images=images,
        accept_timeout_s=settings.api.job_accept_timeout,
        memory_mib=settings.spawn.verify_memory,
    )


def _placement(settings: cfg.ConfigOpts, agents: Agents) -> Placement:
    group = settings.spawn
    ratios = Ratios(
        cpu=group.cpu_allocation_ratio,
        memory=group.ram_allocation_ratio,
        reserved_memory_mib=group.reserved_host_memory,
    )
    return Placement(agents=agents, inventory=agents.inventory, ratios=ratios)
