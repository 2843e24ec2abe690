# SPDX-License-Identifier: Apache-2.0
"""Backup policies: what `/v1/policies` takes and says, as JSON schemas."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

from api_service.schemas import v1
from api_service.schemas.v1 import Parameters, Schema
from api_service.store.policy_records import Missed, RunState
from common.messages import SnapshotOptions

_COUNT_MAX = 10_000
_JITTER_MAX_S = 86_400
_IDS_MAX = 1_000

_NAME: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^(?!\s)[^\x00-\x1f\x7f]*(?<!\s)\Z",
}
_RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_KEEP: Schema = {"type": "integer", "minimum": 0, "maximum": _COUNT_MAX}
RETENTION: Schema = {
    "type": "object",
    "properties": dict.fromkeys(_RULES, _KEEP),
    "minProperties": 1,
    "additionalProperties": False,
}
_SCHEDULE: Schema = {
    "type": "object",
    "properties": {
        "cron": {"type": "string", "minLength": 9, "maxLength": 100},
        "time_zone": {"type": "string", "minLength": 1, "maxLength": 64},
    },
    "required": ["cron"],
    "additionalProperties": False,
}
#: One way to say which instances of the project are meant.
_INSTANCES: Schema = {
    "type": "object",
    "properties": {
        "ids": {
            "type": "array",
            "items": v1._UUID,
            "minItems": 1,
            "maxItems": _IDS_MAX,
            "uniqueItems": True,
        },
        "name": {"type": "string", "minLength": 1, "maxLength": 255},
        "metadata": {
            "type": "object",
            "additionalProperties": {"type": "string", "maxLength": 255},
            "minProperties": 1,
            "maxProperties": 128,
        },
        "all": {"const": True},
    },
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}
_FREEZE: Schema = {"enum": [*SnapshotOptions.CHOICES["freeze"], None]}
_FIELDS: Schema = {
    "name": _NAME,
    "schedule": _SCHEDULE,
    "instances": _INSTANCES,
    # Not `anyOf`: its refusal would not name the rule.
    "retention": RETENTION | {"type": ["object", "null"]},
    "incremental": {"type": "boolean"},
    "full_every": {"type": ["integer", "null"], "minimum": 2, "maximum": _COUNT_MAX},
    "freeze": _FREEZE,
    "verify": {"type": "boolean"},
    "missed_runs": {"type": "string", "enum": [str(one) for one in Missed]},
    "jitter_s": {"type": "integer", "minimum": 0, "maximum": _JITTER_MAX_S},
    "enabled": {"type": "boolean"},
}


def _body(**more: Any) -> Draft202012Validator:
    policy = {"type": "object", "properties": _FIELDS, "additionalProperties": False, **more}
    return Draft202012Validator(
        {
            "type": "object",
            "properties": {"policy": policy},
            "required": ["policy"],
            "additionalProperties": False,
        }
    )


#: The whole of a policy, and some fields of it.
POLICY_WHOLE = _body(required=["name", "schedule", "instances"])
POLICY_CHANGES = _body(minProperties=1)

_LIMIT: Schema = v1._COUNT | {"description": "As many in one reply, at the most."}
_MARKER: Schema = v1._UUID | {"description": "The last one of the page before."}
#: What `GET /v1/policies` may be asked by.
POLICY_FILTERS: Parameters = {
    "project_id": v1._WORD | {"description": "Policies of this project (administrators)."},
    "limit": _LIMIT,
    "marker": _MARKER,
}
#: What `GET /v1/policies/{policy_id}/runs` may be asked by.
RUN_FILTERS: Parameters = {
    "instance_uuid": v1._UUID | {"description": "Runs for this instance."},
    "state": v1._any_of([*RunState]) | {"description": "Runs in one of these states."},
    "limit": _LIMIT,
    "marker": _MARKER,
}
#: What `GET /v1/policies/{policy_id}/retention` may be asked by.
RETENTION_FILTERS: Parameters = {
    name: _KEEP | {"description": f"As if `{name}` kept so many; rules not given keep none."}
    for name in _RULES
}

POLICY = v1._object(
    {
        "id": v1._UUID,
        "project_id": v1._TEXT,
        "user_id": v1._or_null(v1._TEXT),
        **_FIELDS,
        "schedule": v1._object({"cron": v1._TEXT, "time_zone": v1._TEXT}),
        "next_due_at": v1._or_null(v1._TIME),
        "created_at": v1._TIME,
        "updated_at": v1._TIME,
    }
)
RUN = v1._object(
    {
        "id": v1._UUID,
        "policy_id": v1._UUID,
        "instance_uuid": v1._UUID,
        "state": v1._one_of([*RunState]),
        "manual": {"type": "boolean"},
        "due_at": v1._TIME,
        "start_at": v1._TIME,
        "give_up_at": v1._TIME,
        "attempts": v1._COUNT,
        "job_id": v1._or_null(v1._UUID),
        "verify_job_id": v1._or_null(v1._UUID),
        "reason": v1._or_null(v1._TEXT),
        "reason_code": v1._or_null(v1._TEXT),
        "finished_at": v1._or_null(v1._TIME),
    }
)
#: A backup that stands; `rules` keep it, none means that it goes.
FATE = v1._object(
    {
        "job_id": v1._UUID,
        "instance_uuid": v1._UUID,
        "image_ids": {"type": "array", "items": v1._UUID},
        "at": v1._TIME,
        "fate": v1._one_of(["kept", "deleted", "protected", "not_counted"]),
        "rules": {"type": "array", "items": v1._TEXT},
    }
)
_LINKS: Schema = {"type": "array", "items": v1._LINK}
POLICY_BODY = v1._object({"policy": POLICY})
POLICIES_BODY = v1._object(
    {"policies": {"type": "array", "items": POLICY}, "policies_links": _LINKS},
    optional=["policies_links"],
)
RUNS_BODY = v1._object(
    {"runs": {"type": "array", "items": RUN}, "runs_links": _LINKS}, optional=["runs_links"]
)
STARTED_BODY = v1._object({"runs": {"type": "array", "items": RUN}})
RETENTION_BODY = v1._object(
    {
        "retention": v1._or_null(RETENTION),
        "backups": {"type": "array", "items": FATE},
    }
)
