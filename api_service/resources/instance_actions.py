# SPDX-License-Identifier: Apache-2.0
"""`/servers/{id}/os-instance-actions`: what was done to a server, made of its jobs."""

from __future__ import annotations

import falcon

from api_service import views
from api_service.errors import BadRequest, NotFound
from api_service.microversions import Version
from api_service.resources import parameters
from api_service.resources.services import Resource
from api_service.store.action_lists import ActionQuery
from api_service.store.records import Instance

#: From here on it is also told what was done to servers that are gone.
_EVEN_DELETED = Version(2, 21)
_PAGED = Version(2, 58)


class _Actions(Resource):
    def _instance(self, request: falcon.Request, server_id: str, rule: str) -> Instance:
        even_deleted = request.context.version >= _EVEN_DELETED
        return self.visible_instance(request, server_id, rule, even_deleted=even_deleted)


class InstanceActions(_Actions):
    """The list, newest first."""

    def on_get(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """List them, a page at a time from 2.58 on."""
        rule = "os_compute_api:os-instance-actions:list"
        instance = self._instance(request, server_id, rule)
        viewer, query = self.viewer(request), self._query(request, instance)
        jobs = self.services.inventory.actions(query) if query.limit else []
        response.media = {"instanceActions": [views.instance_action(job, viewer) for job in jobs]}
        is_paged = request.context.version >= _PAGED
        if is_paged and jobs and len(jobs) == query.limit:
            last = views.request_id_of(jobs[-1])
            response.media["links"] = [parameters.next_link(request, self.base_url(request), last)]

    def _query(self, request: falcon.Request, instance: Instance) -> ActionQuery:
        version, max_limit = request.context.version, self.services.max_limit
        if version < _PAGED:
            return ActionQuery(instance_uuid=instance.uuid, limit=max_limit)
        parameters.require_known(request, parameters.PAGING | {"changes-since", "changes-before"})
        since, before = parameters.changes(request)
        return ActionQuery(
            instance_uuid=instance.uuid,
            changed_since=since,
            changed_before=before,
            marker=self._marker(request, instance),
            limit=min(parameters.number(request, "limit", max_limit), max_limit),
        )

    def _marker(self, request: falcon.Request, instance: Instance) -> str | None:
        marker = request.get_param("marker")
        if marker is None:
            return None
        job = self.services.inventory.action(instance.uuid, marker)
        if job is None:
            raise BadRequest(f"marker [{marker[:255]}] not found")
        return job.id


class InstanceAction(_Actions):
    """One of them."""

    def on_get(
        self, request: falcon.Request, response: falcon.Response, server_id: str, request_id: str
    ) -> None:
        """Show what the request of that id did."""
        rule = "os_compute_api:os-instance-actions:show"
        instance, viewer = self._instance(request, server_id, rule), self.viewer(request)
        # Not every database takes a NUL.
        is_text = "\x00" not in request_id
        job = self.services.inventory.action(instance.uuid, request_id) if is_text else None
        if job is None:
            raise NotFound(
                f"Action for request_id {request_id[:64]} on instance {server_id} not found"
            )
        response.media = {"instanceAction": views.instance_action_with_events(job, viewer)}
