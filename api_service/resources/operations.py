# SPDX-License-Identifier: Apache-2.0
"""The jobs of `/v1`."""

from __future__ import annotations

import logging

import falcon

from api_service import schemas, views
from api_service.errors import Conflict, NotFound
from api_service.resources.services import Resource, is_uuid
from api_service.store.records import Job as JobRecord
from common.states import IMAGE_KINDS

LOG = logging.getLogger(__name__)


class Jobs(Resource):
    """`GET /v1/jobs`."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the caller's project's jobs, newest first (all of them for administrators)."""
        caller = self.caller(request)
        self.services.authorizer.require(caller, "stillframe:jobs:index")
        is_admin = self.services.authorizer.is_admin(caller)
        jobs = self.services.ledger.jobs(
            project_id=None if is_admin else caller.project_id,
            instance_uuid=request.get_param("instance_uuid"),
            limit=self.services.max_limit,
        )
        response.media = {"jobs": [views.job(job) for job in jobs]}


class Job(Resource):
    """`/v1/jobs/{id}`."""

    def on_get(self, request: falcon.Request, response: falcon.Response, job_id: str) -> None:
        """Show one, with its steps and figures."""
        response.media = {"job": views.job(self._job(request, job_id, "stillframe:jobs:show"))}

    def on_delete(self, request: falcon.Request, response: falcon.Response, job_id: str) -> None:
        """Cancel one: 202, and it ends within a second, its image and all."""
        job = self._job(request, job_id, "stillframe:jobs:cancel")
        cancelled = self.services.ledger.cancel(job.id)
        if cancelled is None:
            raise Conflict(f"Job {job.id} has ended already: it is {job.state}.")
        LOG.info("User %s cancels job %s", self.caller(request).user_id, job.id)
        self.services.dispatcher.poke(job.id)
        response.status = falcon.HTTP_202
        response.media = {"job": views.job(cancelled)}

    def on_patch(self, request: falcon.Request, response: falcon.Response, job_id: str) -> None:
        """Give a running one another limit of its own."""
        body = schemas.read_body(request)
        schemas.validate(schemas.ADJUST_JOB, body)
        job = self._job(request, job_id, "stillframe:jobs:adjust")
        if job.kind not in IMAGE_KINDS:
            raise Conflict(f"Job {job.id} reads no data that could be limited: it is a {job.kind}.")
        adjusted = self.services.ledger.limit(job.id, body["bandwidth_limit"])
        if adjusted is None:
            raise Conflict(f"Job {job.id} has ended already: it is {job.state}.")
        self.services.dispatcher.poke_limit(job.id)
        response.status = falcon.HTTP_202
        response.media = {"job": views.job(adjusted)}

    def _job(self, request: falcon.Request, job_id: str, rule: str) -> JobRecord:
        caller = self.caller(request)
        job = self.services.ledger.find(job_id) if is_uuid(job_id) else None
        is_admin = self.services.authorizer.is_admin(caller)
        if job is None or not (is_admin or job.project_id == caller.project_id):
            raise NotFound(f"Job {job_id} could not be found.")
        caller.resource_uuid = job.instance_uuid
        self.services.authorizer.require(caller, rule, job.project_id)
        return job
