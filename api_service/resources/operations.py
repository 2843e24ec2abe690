# SPDX-License-Identifier: Apache-2.0
"""What operators and programs ask that is no server: the agents, and the jobs of `/v1`."""

from __future__ import annotations

import falcon

from api_service import views
from api_service.errors import NotFound
from api_service.resources.services import Resource, is_uuid


class ComputeServices(Resource):
    """`GET /v2.1/os-services`: the agents, up or down."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them."""
        rule = "os_compute_api:os-services:list"
        self.services.authorizer.require(self.caller(request), rule)
        agents, viewer = self.services.agents, self.viewer(request)
        wanted_host, wanted_binary = request.get_param("host"), request.get_param("binary")
        response.media = {
            "services": [
                views.service(agent, viewer, up=agents.is_up(agent))
                for agent in agents.all()
                if wanted_host in (None, agent.host) and wanted_binary in (None, "nova-compute")
            ]
        }


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
    """`GET /v1/jobs/{id}`."""

    def on_get(self, request: falcon.Request, response: falcon.Response, job_id: str) -> None:
        """Show one, with its steps and figures."""
        caller = self.caller(request)
        job = self.services.ledger.find(job_id) if is_uuid(job_id) else None
        is_admin = self.services.authorizer.is_admin(caller)
        if job is None or not (is_admin or job.project_id == caller.project_id):
            raise NotFound(f"Job {job_id} could not be found.")
        self.services.authorizer.require(caller, "stillframe:jobs:show", job.project_id)
        response.media = {"job": views.job(job)}
