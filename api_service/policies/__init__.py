# SPDX-License-Identifier: Apache-2.0
"""Who may do what: oslo.policy rules named as Nova's, with Nova's new defaults.

Entry point `oslo.policy.policies`; resources ask `Authorizer.require`. What a
caller may not even see is told apart by the resource (404, as in Nova), not here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from oslo_config import cfg
from oslo_policy import policy

from api_service.errors import Forbidden
from common.context import RequestContext

#: A changed policy file is obeyed after this time at the latest, in seconds.
_LOOK_S = 1.0

_ADMIN = "rule:context_is_admin"
_ADMIN_OR_SERVICE = "rule:context_is_admin or rule:service_api"
_READER_OR_ADMIN = "rule:project_reader_or_admin"
_MEMBER_OR_ADMIN = "rule:project_member_or_admin"
_ANYBODY = "@"
_SERVERS = "os_compute_api:servers"
_METADATA = "/servers/{id}/metadata"
_ACTIONS = "/servers/{id}/os-instance-actions"
_POLICIES = "/v1/policies"

_BASE_RULES = tuple(
    policy.RuleDefault(name, check, description=description)
    for name, check, description in (
        ("context_is_admin", "role:admin", "Who counts as an administrator."),
        (
            "project_member_api",
            "role:member and project_id:%(project_id)s",
            "Members of the project.",
        ),
        (
            "project_reader_api",
            "role:reader and project_id:%(project_id)s",
            "Readers of the project.",
        ),
        (
            "project_member_or_admin",
            "rule:project_member_api or rule:context_is_admin",
            "Members of the project, and administrators.",
        ),
        (
            "project_reader_or_admin",
            "rule:project_reader_api or rule:context_is_admin",
            "Readers of the project, and administrators.",
        ),
        ("service_api", "role:service", "Other services of the cloud."),
    )
)

#: (rule, default, description, operations as (method, path))
_RULES: tuple[tuple[str, str, str, list[tuple[str, str]]], ...] = (
    (f"{_SERVERS}:index", _READER_OR_ADMIN, "List servers.", [("GET", "/servers")]),
    (
        f"{_SERVERS}:detail",
        _READER_OR_ADMIN,
        "List servers with details.",
        [("GET", "/servers/detail")],
    ),
    (
        f"{_SERVERS}:index:get_all_tenants",
        _ADMIN,
        "List the servers of all projects.",
        [("GET", "/servers"), ("GET", "/servers/detail")],
    ),
    (f"{_SERVERS}:show", _READER_OR_ADMIN, "Show a server.", [("GET", "/servers/{id}")]),
    (f"{_SERVERS}:create", _MEMBER_OR_ADMIN, "Make a server.", [("POST", "/servers")]),
    (
        f"{_SERVERS}:create:forced_host",
        _ADMIN,
        "Make a server on a host of one's choice (availability_zone).",
        [("POST", "/servers")],
    ),
    (
        "compute:servers:create:requested_destination",
        _ADMIN,
        "Make a server on a host of one's choice (host, hypervisor_hostname).",
        [("POST", "/servers")],
    ),
    (f"{_SERVERS}:delete", _MEMBER_OR_ADMIN, "Delete a server.", [("DELETE", "/servers/{id}")]),
    (
        f"{_SERVERS}:create_image",
        _MEMBER_OR_ADMIN,
        "Take a snapshot of a server.",
        [("POST", "/servers/{id}/action (createImage)")],
    ),
    (
        "os_compute_api:os-extended-server-attributes",
        _ADMIN,
        "See host, hypervisor and domain name of a server.",
        [("GET", "/servers/{id}"), ("GET", "/servers/detail")],
    ),
    *(
        (rule, _MEMBER_OR_ADMIN, what, [("POST", f"/servers/{{id}}/action ({action})")])
        for rule, what, action in (
            ("os_compute_api:os-create-backup", "Take a backup of a server.", "createBackup"),
            ("os_compute_api:os-pause-server:pause", "Pause a server.", "pause"),
            ("os_compute_api:os-pause-server:unpause", "Unpause a server.", "unpause"),
            (f"{_SERVERS}:start", "Start a server.", "os-start"),
            (f"{_SERVERS}:stop", "Stop a server.", "os-stop"),
            (f"{_SERVERS}:reboot", "Reboot a server.", "reboot"),
            (f"{_SERVERS}:rebuild", "Make a server's disk anew of an image.", "rebuild"),
            ("os_compute_api:os-lock-server:lock", "Lock a server.", "lock"),
            ("os_compute_api:os-lock-server:unlock", "Unlock a server.", "unlock"),
        )
    ),
    (
        "os_compute_api:os-lock-server:unlock:unlock_override",
        _ADMIN,
        "Unlock a server that an administrator has locked.",
        [("POST", "/servers/{id}/action (unlock)")],
    ),
    (
        "os_compute_api:os-admin-actions:reset_state",
        _ADMIN,
        "Free a server that is stuck, and say whether it is broken.",
        [("POST", "/servers/{id}/action (os-resetState)")],
    ),
    (f"{_SERVERS}:update", _MEMBER_OR_ADMIN, "Name a server.", [("PUT", "/servers/{id}")]),
    *(
        (f"os_compute_api:server-metadata:{name}", default, what, [(method, path)])
        for name, default, what, method, path in (
            ("index", _READER_OR_ADMIN, "List metadata.", "GET", _METADATA),
            ("show", _READER_OR_ADMIN, "Show an item of it.", "GET", f"{_METADATA}/{{key}}"),
            ("create", _MEMBER_OR_ADMIN, "Add metadata.", "POST", _METADATA),
            ("update_all", _MEMBER_OR_ADMIN, "Replace metadata.", "PUT", _METADATA),
            ("update", _MEMBER_OR_ADMIN, "Set an item of it.", "PUT", f"{_METADATA}/{{key}}"),
            ("delete", _MEMBER_OR_ADMIN, "Remove an item.", "DELETE", f"{_METADATA}/{{key}}"),
        )
    ),
    *(
        (f"os_compute_api:{name}", default, what, [("GET", path)])
        for name, default, what, path in (
            ("os-instance-actions:list", _READER_OR_ADMIN, "List actions.", _ACTIONS),
            ("os-instance-actions:show", _READER_OR_ADMIN, "Show one.", f"{_ACTIONS}/{{id}}"),
            ("os-hypervisors:list", _ADMIN, "List hypervisors.", "/os-hypervisors"),
            ("os-hypervisors:list-detail", _ADMIN, "All of them.", "/os-hypervisors/detail"),
            ("os-hypervisors:show", _ADMIN, "Show one.", "/os-hypervisors/{id}"),
            *(
                (f"os-hypervisors:{name}", _ADMIN, what, f"/os-hypervisors/{path}")
                for name, what, path in (
                    ("statistics", "Add them up.", "statistics"),
                    ("uptime", "Show its uptime.", "{id}/uptime"),
                    ("search", "Find some by name.", "{pattern}/search"),
                    ("servers", "What runs there.", "{pattern}/servers"),
                )
            ),
            ("os-availability-zone:list", _ANYBODY, "List zones.", "/os-availability-zone"),
            (
                "os-availability-zone:detail",
                _ADMIN,
                "List zones with their hosts.",
                "/os-availability-zone/detail",
            ),
            ("os-aggregates:index", _ADMIN, "List aggregates.", "/os-aggregates"),
            ("os-aggregates:show", _ADMIN, "Show one.", "/os-aggregates/{id}"),
            ("limits", _ANYBODY, "Show limits.", "/limits"),
            ("limits:other_project", _ADMIN, "Show another project's.", "/limits"),
            ("extensions", _ANYBODY, "List extensions.", "/extensions"),
        )
    ),
    (
        "stillframe:images:delete",
        _MEMBER_OR_ADMIN,
        "Delete an image through the old proxy (up to 2.35).",
        [("DELETE", "/images/{id}")],
    ),
    ("stillframe:hosts:index", _ADMIN_OR_SERVICE, "List hosts.", [("GET", "/v1/hosts")]),
    ("os_compute_api:os-services:list", _ADMIN, "List the agents.", [("GET", "/os-services")]),
    (
        "stillframe:jobs:bandwidth_limit",
        _MEMBER_OR_ADMIN,
        "Choose how fast a snapshot may read; a very low limit occupies its host's slot for long.",
        [
            ("POST", f"/servers/{{id}}/action ({action}, stillframe:bandwidth_limit)")
            for action in ("createImage", "createBackup")
        ],
    ),
    (
        "stillframe:jobs:index",
        _READER_OR_ADMIN,
        "List jobs.",
        [("GET", "/v1/jobs")],
    ),
    (
        "stillframe:jobs:index:get_all_projects",
        _ADMIN,
        "See the jobs of all projects, and on which host each runs.",
        [("GET", "/v1/jobs"), ("GET", "/v1/jobs/{id}")],
    ),
    (
        "stillframe:jobs:show",
        _READER_OR_ADMIN,
        "Show a job, and how it goes on.",
        [("GET", "/v1/jobs/{id}"), ("GET", "/v1/jobs/{id}/events")],
    ),
    ("stillframe:jobs:cancel", _MEMBER_OR_ADMIN, "Cancel a job.", [("DELETE", "/v1/jobs/{id}")]),
    (
        "stillframe:jobs:adjust",
        _ADMIN,
        "Change how fast a running job may read.",
        [("PATCH", "/v1/jobs/{id}")],
    ),
    ("stillframe:policies:index", _READER_OR_ADMIN, "List policies.", [("GET", _POLICIES)]),
    (
        "stillframe:policies:index:get_all_projects",
        _ADMIN,
        "See the backup policies of all projects.",
        [("GET", _POLICIES), ("GET", f"{_POLICIES}/{{id}}")],
    ),
    (
        "stillframe:policies:show",
        _READER_OR_ADMIN,
        "Show a backup policy, what came of it, and what its retention would do.",
        [("GET", f"{_POLICIES}/{{id}}{more}") for more in ("", "/runs", "/retention")],
    ),
    *(
        (f"stillframe:policies:{name}", _MEMBER_OR_ADMIN, what, operations)
        for name, what, operations in (
            ("create", "Make a backup policy.", [("POST", _POLICIES)]),
            (
                "update",
                "Change a backup policy.",
                [("PUT", f"{_POLICIES}/{{id}}"), ("PATCH", f"{_POLICIES}/{{id}}")],
            ),
            ("delete", "Delete a backup policy.", [("DELETE", f"{_POLICIES}/{{id}}")]),
            ("run", "Run a backup policy now.", [("POST", f"{_POLICIES}/{{id}}/run")]),
        )
    ),
)


def list_rules() -> list[policy.RuleDefault]:
    """Return every rule, for the sample and the enforcer."""
    documented = [
        policy.DocumentedRuleDefault(
            name=name,
            check_str=check,
            description=description,
            operations=[{"method": method, "path": path} for method, path in operations],
            scope_types=["project"],
        )
        for name, check, description, operations in _RULES
    ]
    return [*_BASE_RULES, *documented]


class _Enforcer(policy.Enforcer):
    """oslo.policy's, which looks at the files once a second instead of at each question."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        super().__init__(conf)
        self._looked_at = -_LOOK_S
        #: What was answered since then.
        self.answers: dict[Any, bool] = {}

    def load_rules(self, force_reload: bool = False) -> None:
        """Read again what was changed since the last look."""
        now = time.monotonic()
        if force_reload or now - self._looked_at >= _LOOK_S:
            super().load_rules(force_reload)
            self.answers = {}
            # Only now: until they are read, nobody else may go on without them.
            self._looked_at = now


class Authorizer:
    """Asks the policy; thread-safe."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._enforcer = _Enforcer(conf)
        self._enforcer.register_defaults(list_rules())

    def allows(self, context: RequestContext, rule: str, project_id: str | None = None) -> bool:
        """Tell whether the caller may; `project_id` is the thing's (default: the caller's)."""
        target: Mapping[str, str | None] = {"project_id": project_id or context.project_id}
        self._enforcer.load_rules()
        # A request asks the same several times over, and it takes long to find the answer.
        # These are all that a rule can look at.
        answers, values = self._enforcer.answers, context.to_policy_values().items()
        who = tuple((key, tuple(one) if isinstance(one, list) else one) for key, one in values)
        question = (rule, target["project_id"], who)
        if question not in answers:
            answers[question] = bool(self._enforcer.authorize(rule, target, context))
        return answers[question]

    def require(self, context: RequestContext, rule: str, project_id: str | None = None) -> None:
        """Raise Forbidden unless the caller may."""
        if not self.allows(context, rule, project_id):
            raise Forbidden(f"Policy doesn't allow {rule} to be performed.")

    def require_limit(
        self, context: RequestContext, limit: int | None, project_id: str | None
    ) -> None:
        """Raise Forbidden unless the caller may give a job this limit (None: asks for none)."""
        if limit is not None:
            self.require(context, "stillframe:jobs:bandwidth_limit", project_id)

    def is_admin(self, context: RequestContext) -> bool:
        """Tell whether the caller is an administrator, by the policy's own rule."""
        return self.allows(context, "context_is_admin")
