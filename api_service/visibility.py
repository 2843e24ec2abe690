# SPDX-License-Identifier: Apache-2.0
"""What a caller may see and do, over REST and RPC alike.

Another project's instance or job is not found: that it exists is not the
caller's business.
"""

from __future__ import annotations

import dataclasses
import uuid

from api_service.errors import NotFound
from api_service.policies import Authorizer
from api_service.store.inventory import Inventory
from api_service.store.ledger import Ledger
from api_service.store.records import Instance, Job
from common.context import RequestContext

EVERYBODYS_JOBS = "stillframe:jobs:index:get_all_projects"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Visibility:
    """Finds instances and jobs for a caller; the id stands on every log line from there on."""

    authorizer: Authorizer
    inventory: Inventory
    ledger: Ledger

    def instance(
        self, caller: RequestContext, instance_id: str, rule: str, *, even_deleted: bool = False
    ) -> Instance:
        """Return an instance; raise NotFound, or Forbidden if `rule` says no."""
        find = self.inventory.past_instance if even_deleted else self.inventory.instance
        # Names come where ids belong, with bytes that not every database takes.
        instance = find(instance_id) if is_uuid(instance_id) else None
        is_admin = self.authorizer.is_admin(caller)
        if instance is None or not (is_admin or instance.project_id == caller.project_id):
            raise NotFound(f"Instance {instance_id} could not be found.")
        caller.resource_uuid = instance.uuid
        self.authorizer.require(caller, rule, instance.project_id)
        return instance

    def job(self, caller: RequestContext, job_id: str, rule: str) -> Job:
        """Return a job; raise NotFound, or Forbidden if `rule` says no."""
        job = self.ledger.find(job_id) if is_uuid(job_id) else None
        if job is None or not self.sees(caller, job):
            raise NotFound(f"Job {job_id[:64]} could not be found.")
        caller.resource_uuid = job.instance_uuid
        self.authorizer.require(caller, rule, job.project_id)
        return job

    def sees(self, caller: RequestContext, job: Job) -> bool:
        """Tell whether a job is the caller's project's, or the caller sees all."""
        is_own = caller.project_id is not None and job.project_id == caller.project_id
        return is_own or self.sees_all_jobs(caller)

    def sees_all_jobs(self, caller: RequestContext) -> bool:
        """Tell whether the caller may see every project's jobs, and where they run."""
        return self.authorizer.allows(caller, EVERYBODYS_JOBS)


def is_uuid(text: str) -> bool:
    """Tell whether a word that came from outside can be an id."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
