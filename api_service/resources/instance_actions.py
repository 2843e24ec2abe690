# SPDX-License-Identifier: Apache-2.0
"""`/servers/{id}/os-instance-actions`: what was done to a server, made of its jobs."""

from __future__ import annotations

import falcon

from api_service import views
from api_service.errors import NotFound
from api_service.resources.services import Resource
from api_service.store.job_lists import JobQuery
from api_service.store.records import Job


class InstanceActions(Resource):
    """The list, newest first, and one of it by the id of the request that asked."""

    def on_get(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """List them."""
        viewer = self.viewer(request)
        jobs = self._jobs(request, server_id, "os_compute_api:os-instance-actions:list")
        response.media = {"instanceActions": [views.instance_action(job, viewer) for job in jobs]}

    def on_get_one(
        self, request: falcon.Request, response: falcon.Response, server_id: str, request_id: str
    ) -> None:
        """Show what the request of that id did."""
        viewer = self.viewer(request)
        for job in self._jobs(request, server_id, "os_compute_api:os-instance-actions:show"):
            if views.request_id_of(job) == request_id:
                shown = views.instance_action_with_events(job, viewer)
                response.media = {"instanceAction": shown}
                return
        raise NotFound(f"Action for request_id {request_id[:64]} on instance {server_id} not found")

    def _jobs(self, request: falcon.Request, server_id: str, rule: str) -> list[Job]:
        instance = self.visible_instance(request, server_id, rule)
        query = JobQuery(instance_uuid=instance.uuid, limit=self.services.max_limit)
        return self.services.ledger.jobs(query)
