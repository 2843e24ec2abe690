# SPDX-License-Identifier: Apache-2.0
"""From our records to Nova's bodies, by microversion; `views.<noun>` makes one.

A body has no key of our own, since clients validate replies strictly.
"""

from api_service.views.actions import (
    instance_action,
    instance_action_with_events,
    request_id_of,
)
from api_service.views.flavors import flavor, flavor_summary
from api_service.views.hosts import (
    host,
    hypervisor,
    hypervisor_id,
    hypervisor_statistics,
    hypervisor_summary,
    servers_of,
    service,
)
from api_service.views.images import image, image_status, image_summary, image_time
from api_service.views.jobs import event_id, job, percent
from api_service.views.policies import backup as policy_backup
from api_service.views.policies import policy
from api_service.views.policies import run as policy_run
from api_service.views.servers import (
    STATUSES,
    created_server,
    rebuilt_server,
    server,
    server_summary,
    states_of,
    updated_server,
)
from api_service.views.versions import our_version_document, version_document
from api_service.views.viewer import Viewer

__all__ = [
    "STATUSES",
    "Viewer",
    "created_server",
    "event_id",
    "flavor",
    "flavor_summary",
    "host",
    "hypervisor",
    "hypervisor_id",
    "hypervisor_statistics",
    "hypervisor_summary",
    "image",
    "image_status",
    "image_summary",
    "image_time",
    "instance_action",
    "instance_action_with_events",
    "job",
    "our_version_document",
    "percent",
    "policy",
    "policy_backup",
    "policy_run",
    "rebuilt_server",
    "request_id_of",
    "server",
    "server_summary",
    "servers_of",
    "service",
    "states_of",
    "updated_server",
    "version_document",
]
