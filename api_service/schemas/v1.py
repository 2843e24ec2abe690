# SPDX-License-Identifier: Apache-2.0
"""What `/v1` takes in its queries and says in its replies, as JSON schemas.

The code reads queries by these tables, and the OpenAPI document is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import falcon
from jsonschema import Draft202012Validator

from api_service import schemas
from api_service.errors import BadRequest
from common.states import JobKind, JobState

Schema = dict[str, Any]
Parameters = dict[str, Schema]

_NUMBER_MAX_DIGITS = 18
_PERCENT = 100

_TEXT: Schema = {"type": "string"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_UUID: Schema = {
    "type": "string",
    "pattern": r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z",
}
_WORD: Schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\x00]*\Z"}


def _one_of(words: Sequence[str]) -> Schema:
    return {"type": "string", "enum": [str(word) for word in words]}


def _any_of(words: Sequence[str]) -> Schema:
    return {"type": "array", "items": _one_of(words), "minItems": 1, "maxItems": len(words)}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: Schema, *, optional: Sequence[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


#: What `GET /v1/jobs` may be asked by.
JOB_FILTERS: Parameters = {
    "instance_uuid": _UUID | {"description": "Jobs of this instance."},
    "project_id": _WORD | {"description": "Jobs of this project (administrators)."},
    "host": _WORD | {"description": "Jobs of this host (administrators)."},
    "policy_id": _UUID | {"description": "Jobs that this backup policy wanted."},
    "state": _any_of([*JobState]) | {"description": "Jobs in one of these states."},
    "kind": _any_of([*JobKind]) | {"description": "Jobs of one of these kinds."},
    "created_since": _TIME | {"description": "Jobs asked for at this time or later."},
    "created_before": _TIME | {"description": "Jobs asked for before this time."},
    "limit": _COUNT | {"description": "Jobs in one reply, at the most."},
    "marker": _UUID | {"description": "The last job of the page before."},
}
#: What `GET /v1/jobs/{job_id}/events` may be asked by.
EVENT_FILTERS: Parameters = {
    "wait": _COUNT
    | {
        "description": "Answer once, as JSON, when the job has changed since `Last-Event-ID`, "
        "or after so many seconds."
    }
}

_STEP = _object({"name": _TEXT, "began_at": _NUMBER, "ended_at": _or_null(_NUMBER)})
_IMAGE = _object(
    {
        "image_id": _TEXT,
        "disk": _TEXT,
        "size_bytes": _or_null(_COUNT),
        "sha512": _or_null(_TEXT),
        "parent_image_id": _or_null(_TEXT),
        "chain_length": _COUNT,
        "why_full": _or_null(_TEXT),
    }
)
_STAMPS = _object(
    {
        "stopped_at": _NUMBER,
        "instants": {"type": "array", "items": _NUMBER},
        "resumed_at": _NUMBER,
    }
)
_CAPTURE = _object(
    {
        "method": _TEXT,
        "consistency": _TEXT,
        "captured_at": _NUMBER,
        "pause_ms": _or_null(_NUMBER),
        "instant_inside_pause": _or_null({"type": "boolean"}),
        "stamps": _or_null(_STAMPS),
        "freeze_ms": _or_null(_NUMBER),
        "disks_left_out": {"type": "object", "additionalProperties": _TEXT},
    }
)
JOB = _object(
    {
        "id": _UUID,
        "kind": _one_of([*JobKind]),
        "state": _one_of([*JobState]),
        "instance_uuid": _TEXT,
        "project_id": _or_null(_TEXT),
        "user_id": _or_null(_TEXT),
        "host": _or_null(_TEXT),
        "image_id": _or_null(_TEXT),
        "policy_id": _or_null(_TEXT),
        "step": _or_null(_TEXT),
        "progress": {"type": "integer", "minimum": 0, "maximum": _PERCENT},
        "bytes_done": _COUNT,
        "bytes_total": _COUNT,
        "rate_bytes_s": _NUMBER,
        "eta_s": _or_null(_NUMBER),
        "size_bytes": _or_null(_COUNT),
        "sha512": _or_null(_TEXT),
        "pause_ms": _or_null(_NUMBER),
        "consistency": _or_null(_TEXT),
        "capture": _or_null(_CAPTURE),
        "images": {"type": "array", "items": _IMAGE},
        "options": {"type": "object"},
        "backup_type": _or_null(_TEXT),
        "rotation": _or_null({"type": "integer", "minimum": 0}),
        "removed_at": _or_null(_TIME),
        "cancel_asked_at": _or_null(_TIME),
        "steps": {"type": "array", "items": _STEP},
        "reason": _or_null(_TEXT),
        "reason_code": _or_null(_TEXT),
        "created_at": _TIME,
        "accepted_at": _or_null(_TIME),
        "finished_at": _or_null(_TIME),
    }
)
_LINK = _object({"rel": _TEXT, "href": {"type": "string", "format": "uri"}})
_HYPERVISOR = _object(
    {
        "type": _TEXT,
        "version": {"type": "integer"},
        "hostname": _TEXT,
        "vcpus": _COUNT,
        "memory_mib": _COUNT,
        "host_ip": _or_null(_TEXT),
        "free_disk_gib": _or_null(_COUNT),
        "networks": _or_null({"type": "object", "additionalProperties": _TEXT}),
    }
)
HOST = _object(
    {
        "host": _TEXT,
        "state": _one_of(["up", "down"]),
        "release": _TEXT,
        "rpc_version": _TEXT,
        "hypervisor": _or_null(_HYPERVISOR),
        "instances": _COUNT,
        "open_jobs": {"type": "array", "items": _TEXT},
        "started_at": _TIME,
        "last_seen_at": _TIME,
        "clock_offset_s": _or_null(_NUMBER),
    }
)
JOB_BODY = _object({"job": JOB})
JOBS_BODY = _object(
    {"jobs": {"type": "array", "items": JOB}, "jobs_links": {"type": "array", "items": _LINK}},
    optional=["jobs_links"],
)
#: One server-sent event: `data` is a JOB_BODY, `event` says `end` of the last.
EVENT = _object({"id": _TEXT, "event": _one_of(["job", "end"]), "data": _TEXT, "retry": _TEXT})
EVENT["required"] = []
EVENT_BODY = _object({"event_id": _TEXT, "job": JOB})
HOSTS_BODY = _object({"hosts": {"type": "array", "items": HOST}})
VERSION_BODY = _object(
    {"version": _object({"id": _TEXT, "status": _TEXT, "links": {"type": "array", "items": _LINK}})}
)


def read_query(request: falcon.Request, parameters: Parameters) -> dict[str, Any]:
    """Return what a request's query asks, by the table; raise BadRequest naming what is wrong.

    A parameter that is a list is given once for each of its values, another one once.
    """
    query = {
        name: _value(request.get_param_as_list(name) or [""], parameters.get(name, {}))
        for name in request.params
    }
    schema = {"type": "object", "properties": parameters, "additionalProperties": False}
    schemas.validate(Draft202012Validator(schema), query)
    return query


def _value(texts: list[str], schema: Schema) -> Any:
    kind = schema.get("type")
    if kind == "array":
        return texts
    if len(texts) > 1:
        raise BadRequest("Invalid input for query parameters: one of them is given twice.")
    (text,) = texts
    # `isdigit` alone is also true of a superscript two.
    is_number = text.isascii() and text.isdigit() and len(text) <= _NUMBER_MAX_DIGITS
    return int(text) if kind == "integer" and is_number else text
