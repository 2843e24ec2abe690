# SPDX-License-Identifier: Apache-2.0
"""The jobs of `/v1`."""

from __future__ import annotations

import datetime as dt
import logging
import urllib.parse
from typing import Any

import falcon

from api_service import schemas, views
from api_service.errors import BadRequest, Conflict
from api_service.resources.services import Resource
from api_service.schemas import v1
from api_service.store.job_lists import JobQuery
from api_service.store.records import Job as JobRecord
from api_service.visibility import EVERYBODYS_JOBS
from common.states import DISK_KINDS, IMAGE_KINDS, JobKind, JobState

LOG = logging.getLogger(__name__)


class JobResource(Resource):
    """What the resources of jobs share."""

    def sees_all(self, request: falcon.Request) -> bool:
        """Tell whether the caller may see every project's jobs, and where they run."""
        return self.services.visibility.sees_all_jobs(self.caller(request))

    def show(self, request: falcon.Request, job: JobRecord) -> dict[str, Any]:
        """Return a job as this caller sees it."""
        return views.job(job, sees_host=self.sees_all(request))

    def job(self, request: falcon.Request, job_id: str, rule: str) -> JobRecord:
        """Return a job that the caller may see; raise NotFound, or Forbidden if `rule` says no."""
        return self.services.visibility.job(self.caller(request), job_id, rule)


class Jobs(JobResource):
    """`GET /v1/jobs`."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the caller's project's jobs, newest first (all of them for administrators)."""
        self.services.authorizer.require(self.caller(request), "stillframe:jobs:index")
        query = self._query(request)
        found = self.services.ledger.jobs(query) if query.limit else []
        sees_host = self.sees_all(request)
        response.media = {"jobs": [views.job(job, sees_host=sees_host) for job in found]}
        if found and len(found) == query.limit:
            response.media["jobs_links"] = [self._next(request, found[-1].id)]

    def _query(self, request: falcon.Request) -> JobQuery:
        asked = v1.read_query(request, v1.JOB_FILTERS)
        most = self.services.max_limit
        return JobQuery(
            project_id=self._project(request, asked),
            instance_uuid=asked.get("instance_uuid"),
            host=asked.get("host"),
            policy_id=asked.get("policy_id"),
            states=tuple(JobState(state) for state in asked.get("state", ())),
            kinds=tuple(JobKind(kind) for kind in asked.get("kind", ())),
            created_since=_time(asked, "created_since"),
            created_before=_time(asked, "created_before"),
            marker=self._marker(request, asked),
            limit=min(asked.get("limit", most), most),
        )

    def _project(self, request: falcon.Request, asked: dict[str, Any]) -> str | None:
        """Return the project whose jobs are listed, None for all; raise Forbidden for another's."""
        caller = self.caller(request)
        wanted: str | None = asked.get("project_id")
        # Whoever has no project has no jobs either.
        if "host" in asked or caller.project_id is None or wanted not in (None, caller.project_id):
            self.services.authorizer.require(caller, EVERYBODYS_JOBS)
        return wanted if self.sees_all(request) else caller.project_id

    def _marker(self, request: falcon.Request, asked: dict[str, Any]) -> str | None:
        marker: str | None = asked.get("marker")
        if marker is None:
            return None
        job = self.services.ledger.find(marker)
        if job is None or not self.services.visibility.sees(self.caller(request), job):
            raise BadRequest(f"marker [{marker}] not found")
        return marker

    def _next(self, request: falcon.Request, marker: str) -> dict[str, str]:
        query = urllib.parse.urlencode({**request.params, "marker": marker}, doseq=True)
        return {"rel": "next", "href": f"{self.base_url(request)}{request.path}?{query}"}


class Job(JobResource):
    """`/v1/jobs/{id}`."""

    def on_get(self, request: falcon.Request, response: falcon.Response, job_id: str) -> None:
        """Show one, with its steps and figures."""
        job = self.job(request, job_id, "stillframe:jobs:show")
        response.media = {"job": self.show(request, job)}

    def on_delete(self, request: falcon.Request, response: falcon.Response, job_id: str) -> None:
        """Cancel one: 202, and it ends within a second, its image and all."""
        job = self.job(request, job_id, "stillframe:jobs:cancel")
        cancelled = self.services.ledger.cancel(job.id)
        if cancelled is None:
            raise Conflict(f"Job {job.id} has ended already: it is {job.state}.")
        LOG.info("User %s cancels job %s", self.caller(request).user_id, job.id)
        self.services.dispatcher.poke(job.id)
        response.status = falcon.HTTP_202
        response.media = {"job": self.show(request, cancelled)}

    def on_patch(self, request: falcon.Request, response: falcon.Response, job_id: str) -> None:
        """Give a running one another limit of its own."""
        body = schemas.read_body(request)
        schemas.validate(schemas.ADJUST_JOB, body)
        job = self.job(request, job_id, "stillframe:jobs:adjust")
        if job.kind not in IMAGE_KINDS | DISK_KINDS:
            raise Conflict(f"Job {job.id} reads no data that could be limited: it is a {job.kind}.")
        adjusted = self.services.ledger.limit(job.id, body["bandwidth_limit"])
        if adjusted is None:
            raise Conflict(f"Job {job.id} has ended already: it is {job.state}.")
        self.services.dispatcher.poke_limit(job.id)
        response.status = falcon.HTTP_202
        response.media = {"job": self.show(request, adjusted)}


def _time(asked: dict[str, Any], name: str) -> dt.datetime | None:
    """Return a time that is asked for, in UTC unless it says otherwise."""
    text = asked.get(name)
    if text is None:
        return None
    try:
        given = dt.datetime.fromisoformat(text)
        return (given if given.tzinfo else given.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise BadRequest(
            f"Invalid input for query parameters {name}. Value: {text[:64]}. It must be a time "
            "as ISO 8601 writes it."
        ) from None
