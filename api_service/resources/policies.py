# SPDX-License-Identifier: Apache-2.0
"""The backup policies of `/v1`, their runs, and what their retention does."""

from __future__ import annotations

from typing import Any

import falcon

from api_service import schemas, views
from api_service.backup_policies import as_given, retention_of, rules_of
from api_service.errors import BadRequest, NotFound
from api_service.resources import parameters
from api_service.resources.services import Resource
from api_service.schemas import v1, v1_policies
from api_service.store.policies import PolicyQuery
from api_service.store.policy_records import Policy as PolicyRecord
from api_service.store.policy_records import RunState
from api_service.store.policy_runs import RunQuery
from api_service.visibility import is_uuid

_EVERYBODYS = "stillframe:policies:index:get_all_projects"


class PolicyResource(Resource):
    """What the resources of policies share."""

    def policy(self, request: falcon.Request, policy_id: str, rule: str) -> PolicyRecord:
        """Return a policy that the caller may see; raise NotFound, or Forbidden if `rule` says no.

        Another project's is not found: that it exists is not the caller's business.
        """
        policies = self.services.policies.book.policies
        found = policies.find(policy_id) if is_uuid(policy_id) else None
        if found is None or not self.sees(request, found):
            raise _not_found(policy_id)
        self.services.authorizer.require(self.caller(request), rule, found.project_id)
        return found

    def sees(self, request: falcon.Request, policy: PolicyRecord) -> bool:
        """Tell whether a policy is the caller's project's, or the caller sees all."""
        caller = self.caller(request)
        return policy.project_id == caller.project_id or self.services.authorizer.allows(
            caller, _EVERYBODYS
        )

    def page(
        self, request: falcon.Request, name: str, items: list[dict[str, Any]], limit: int
    ) -> dict[str, Any]:
        """Return the body of a list, with a link to the page after a full one."""
        body: dict[str, Any] = {name: items}
        if items and len(items) == limit:
            link = parameters.next_link(request, self.base_url(request), items[-1]["id"])
            body[f"{name}_links"] = [link]
        return body


class Policies(PolicyResource):
    """`/v1/policies`."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the caller's project's policies, newest first (all of them for administrators)."""
        self.services.authorizer.require(self.caller(request), "stillframe:policies:index")
        asked = v1.read_query(request, v1_policies.POLICY_FILTERS)
        limit = min(asked.get("limit", self.services.max_limit), self.services.max_limit)
        query = PolicyQuery(
            project_id=self._project(request, asked),
            marker=self._marker(request, asked),
            limit=limit,
        )
        found = self.services.policies.book.policies.page(query) if limit else []
        response.media = self.page(request, "policies", [_show(one) for one in found], limit)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Make one: 201."""
        body = schemas.read_body(request)
        schemas.validate(v1_policies.POLICY_WHOLE, body)
        caller = self.caller(request)
        self.services.authorizer.require(caller, "stillframe:policies:create")
        policy = self.services.policies.book.create(caller, body["policy"])
        response.status = falcon.HTTP_201
        response.location = f"{self.base_url(request)}/v1/policies/{policy.id}"
        response.media = {"policy": _show(policy)}

    def _project(self, request: falcon.Request, asked: dict[str, Any]) -> str | None:
        """Return the project whose policies are listed, None for all; raise Forbidden."""
        caller, authorizer = self.caller(request), self.services.authorizer
        wanted: str | None = asked.get("project_id")
        if caller.project_id is None or wanted not in (None, caller.project_id):
            authorizer.require(caller, _EVERYBODYS)
        return wanted if authorizer.allows(caller, _EVERYBODYS) else caller.project_id

    def _marker(self, request: falcon.Request, asked: dict[str, Any]) -> str | None:
        marker: str | None = asked.get("marker")
        if marker is None:
            return None
        policy = self.services.policies.book.policies.find(marker)
        if policy is None or not self.sees(request, policy):
            raise BadRequest(f"marker [{marker}] not found")
        return marker


class Policy(PolicyResource):
    """`/v1/policies/{id}`."""

    def on_get(self, request: falcon.Request, response: falcon.Response, policy_id: str) -> None:
        """Show one."""
        response.media = {
            "policy": _show(self.policy(request, policy_id, "stillframe:policies:show"))
        }

    def on_put(self, request: falcon.Request, response: falcon.Response, policy_id: str) -> None:
        """Make all of it anew: what is left out is as if it had never been said."""
        body = schemas.read_body(request)
        schemas.validate(v1_policies.POLICY_WHOLE, body)
        policy = self.policy(request, policy_id, "stillframe:policies:update")
        changed = self.services.policies.book.replace(policy, body["policy"])
        response.media = {"policy": _shown_if_there(changed, policy_id)}

    def on_patch(self, request: falcon.Request, response: falcon.Response, policy_id: str) -> None:
        """Change some fields of it, each as a whole."""
        body = schemas.read_body(request)
        schemas.validate(v1_policies.POLICY_CHANGES, body)
        policy = self.policy(request, policy_id, "stillframe:policies:update")
        changed = self.services.policies.book.change(policy, body["policy"])
        response.media = {"policy": _shown_if_there(changed, policy_id)}

    def on_delete(self, request: falcon.Request, response: falcon.Response, policy_id: str) -> None:
        """Forget it and its runs: 204; the backups that it had made stay."""
        policy = self.policy(request, policy_id, "stillframe:policies:delete")
        self.services.policies.book.remove(self.caller(request), policy)
        response.status = falcon.HTTP_204


class PolicyRun(PolicyResource):
    """`/v1/policies/{id}/run`."""

    def on_post(self, request: falcon.Request, response: falcon.Response, policy_id: str) -> None:
        """Have a backup of each of its instances made now: 202, and runs that wait."""
        policy = self.policy(request, policy_id, "stillframe:policies:run")
        runs = self.services.policies.book.run_now(self.caller(request), policy)
        response.status = falcon.HTTP_202
        response.media = {"runs": [views.policy_run(run) for run in runs]}


class PolicyRuns(PolicyResource):
    """`/v1/policies/{id}/runs`."""

    def on_get(self, request: falcon.Request, response: falcon.Response, policy_id: str) -> None:
        """List what came of it, newest first: done, skipped and why, or still to come."""
        policy = self.policy(request, policy_id, "stillframe:policies:show")
        asked = v1.read_query(request, v1_policies.RUN_FILTERS)
        limit = min(asked.get("limit", self.services.max_limit), self.services.max_limit)
        runs, marker = self.services.policies.book.runs, asked.get("marker")
        last = runs.find(marker) if marker else None
        if marker and (last is None or last.policy_id != policy.id):
            raise BadRequest(f"marker [{marker}] not found")
        query = RunQuery(
            policy_id=policy.id,
            instance_uuid=asked.get("instance_uuid"),
            states=tuple(RunState(state) for state in asked.get("state", ())),
            marker=marker,
            limit=limit,
        )
        found = [views.policy_run(run) for run in runs.page(query)] if limit else []
        response.media = self.page(request, "runs", found, limit)


class PolicyRetention(PolicyResource):
    """`/v1/policies/{id}/retention`."""

    def on_get(self, request: falcon.Request, response: falcon.Response, policy_id: str) -> None:
        """Tell what its retention, or another one, would keep and delete now; nothing is done."""
        policy = self.policy(request, policy_id, "stillframe:policies:show")
        asked = v1.read_query(request, v1_policies.RETENTION_FILTERS)
        retention = retention_of(asked) if asked else policy.retention
        verdicts = self.services.policies.pruner.outlook(policy, retention)
        response.media = {
            "retention": rules_of(retention),
            "backups": [views.policy_backup(one.backup, one.fate, one.rules) for one in verdicts],
        }


def _show(policy: PolicyRecord) -> dict[str, Any]:
    return views.policy(policy, as_given(policy))


def _shown_if_there(policy: PolicyRecord | None, policy_id: str) -> dict[str, Any]:
    if policy is None:
        raise _not_found(policy_id)
    return _show(policy)


def _not_found(policy_id: str) -> NotFound:
    return NotFound(f"Policy {policy_id[:64]} could not be found.")
