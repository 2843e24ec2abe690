# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 document of everything that is answered, made of the code's own tables.

Routes and what a method says of itself come from `app.ROUTES`, bodies and
queries from `schemas`, rules from `policies`. OPERATIONS adds what no other
table has: which schema belongs to which method. Nova's own replies are Nova's
to describe. `stillframe-manage openapi` prints the document.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jsonschema import Draft202012Validator

from api_service import errors as api
from api_service import faults, microversions, policies, schemas
from api_service.schemas import v1, v1_policies
from api_service.schemas.create import create_server
from api_service.schemas.rebuild import rebuild
from api_service.schemas.v1 import Parameters, Schema

#: URL template, what answers it, and the suffix of its methods.
Route = tuple[str, type[Any], str | None]

_NOVA = "/v2.1/"
_METHODS = ("get", "post", "put", "patch", "delete")
_JSON = "application/json"
_PARAMETER = re.compile(r"{(\w+)}")
_OPEN_PREFIXES = ("/v1/jobs", "/v1/hosts", "/v1/policies", _NOVA)

#: A whole body of Nova's, whose shape depends on the version.
_NOVAS: Schema = {"type": "object"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a method takes and answers when all is well."""

    status: int = 200
    #: Media type → schema; empty where there is no body, or not in every version.
    replies: dict[str, Schema] = dataclasses.field(default_factory=dict)
    body: Schema | None = None
    query: Parameters = dataclasses.field(default_factory=dict)
    #: Another status that is no fault.
    also: int | None = None


def _answers(schema: Schema, **more: Any) -> Operation:
    return Operation(replies={_JSON: schema}, **more)


def _any_action(actions: Iterable[Draft202012Validator]) -> Schema:
    return {"oneOf": [_schema(action) for action in actions]}


def _schema(validator: Draft202012Validator) -> Schema:
    schema: Any = validator.schema
    return dict(schema)


_POLICY, _POLICY_BODY = "/v1/policies/{policy_id}", v1_policies.POLICY_BODY
_METADATA, _ITEM = f"{_NOVA}servers/{{server_id}}/metadata", "/{key}"

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("get", "/v1"): _answers(v1.VERSION_BODY),
    ("get", "/v1/hosts"): _answers(v1.HOSTS_BODY),
    ("get", "/v1/jobs"): _answers(v1.JOBS_BODY, query=v1.JOB_FILTERS),
    ("get", "/v1/jobs/{job_id}"): _answers(v1.JOB_BODY),
    ("delete", "/v1/jobs/{job_id}"): _answers(v1.JOB_BODY, status=202),
    ("patch", "/v1/jobs/{job_id}"): _answers(
        v1.JOB_BODY, status=202, body=_schema(schemas.ADJUST_JOB)
    ),
    ("get", "/v1/jobs/{job_id}/events"): Operation(
        replies={"text/event-stream": v1.EVENT, _JSON: v1.EVENT_BODY},
        query=v1.EVENT_FILTERS,
        also=204,
    ),
    ("get", "/v1/policies"): _answers(v1_policies.POLICIES_BODY, query=v1_policies.POLICY_FILTERS),
    ("post", "/v1/policies"): _answers(
        _POLICY_BODY, status=201, body=_schema(v1_policies.POLICY_WHOLE)
    ),
    ("get", _POLICY): _answers(_POLICY_BODY),
    ("put", _POLICY): _answers(_POLICY_BODY, body=_schema(v1_policies.POLICY_WHOLE)),
    ("patch", _POLICY): _answers(_POLICY_BODY, body=_schema(v1_policies.POLICY_CHANGES)),
    ("delete", _POLICY): Operation(status=204),
    ("post", f"{_POLICY}/run"): _answers(v1_policies.STARTED_BODY, status=202),
    ("get", f"{_POLICY}/runs"): _answers(v1_policies.RUNS_BODY, query=v1_policies.RUN_FILTERS),
    ("get", f"{_POLICY}/retention"): _answers(
        v1_policies.RETENTION_BODY, query=v1_policies.RETENTION_FILTERS
    ),
    ("post", f"{_NOVA}servers/{{server_id}}/action"): Operation(
        status=202, body=_any_action((*schemas.ACTIONS, rebuild(microversions.MAXIMUM)))
    ),
    ("post", f"{_NOVA}servers"): _answers(
        _NOVAS, status=202, body=_schema(create_server(microversions.MAXIMUM))
    ),
    ("delete", f"{_NOVA}servers/{{server_id}}"): Operation(status=204),
    ("put", f"{_NOVA}servers/{{server_id}}"): _answers(
        _NOVAS, body=_schema(schemas.update_server(microversions.MAXIMUM))
    ),
    ("post", _METADATA): _answers(_NOVAS, body=_schema(schemas.METADATA)),
    ("put", _METADATA): _answers(_NOVAS, body=_schema(schemas.METADATA)),
    ("put", _METADATA + _ITEM): _answers(_NOVAS, body=_schema(schemas.META)),
    ("delete", _METADATA + _ITEM): Operation(status=204),
}

_FAULT: Schema = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": {
        "type": "object",
        "properties": {
            "code": {"type": "integer"},
            "title": {"type": "string"},
            "message": {"type": "string"},
            "retryAfter": {"type": "string"},
        },
        "required": ["code", "message"],
        "additionalProperties": False,
    },
}
#: Errors that any request, and those that only some, may be answered with.
_ALWAYS: tuple[type[Exception], ...] = (api.BadRequest, api.NoFreeStream)
_OF_CALLERS = (
    api.Unauthenticated,
    api.IdentityUnavailable,
    api.Forbidden,
    api.NotFound,
    api.TooManyRequests,
)
_OF_CHANGES = (api.Conflict, api.LengthRequired, api.RequestTooLarge)
_OF_NOVAS = (api.VersionUnsupported,)


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document of these routes."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stillframe",
            "version": "1",
            "description": "Jobs, hosts and backup policies under /v1; Nova's compute API, as "
            "far as it is answered here, under /v2.1 "
            f"({microversions.MINIMUM} to {microversions.MAXIMUM}).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {url: _path(url, resource, suffix) for url, resource, suffix in routes},
        "components": {
            "schemas": {"Fault": _FAULT},
            "responses": {str(status): _fault(status) for status in _statuses_of_faults()},
            "parameters": {"Microversion": _microversion()},
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}
            },
        },
    }


def _path(url: str, resource: type[Any], suffix: str | None) -> dict[str, Any]:
    methods = {
        method: getattr(resource, f"on_{method}" + (f"_{suffix}" if suffix else ""), None)
        for method in _METHODS
    }
    known = {method: code for method, code in methods.items() if code is not None}
    return {method: _operation(method, url, resource, code) for method, code in known.items()}


def _operation(method: str, url: str, resource: type[Any], code: Any) -> dict[str, Any]:
    known = OPERATIONS.get((method, url)) or _answers(_NOVAS)
    described: dict[str, Any] = {
        "operationId": f"{resource.__name__}.{code.__name__.removeprefix('on_')}",
        "summary": _sentence(code),
        "description": _sentence(resource),
        "parameters": [*_parameters(url, known)],
        "responses": _responses(method, url, known),
    }
    if known.body is not None:
        content = {_JSON: {"schema": _portable(known.body)}}
        described["requestBody"] = {"required": True, "content": content}
    if _has_caller(url):
        described["security"] = [{"token": []}]
        described["x-policies"] = _rules(method, url)
    return described


def _parameters(url: str, known: Operation) -> Iterator[dict[str, Any]]:
    if url.startswith(_NOVA):
        yield {"$ref": "#/components/parameters/Microversion"}
    for name in _PARAMETER.findall(url):
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    for name, schema in known.query.items():
        without = {key: value for key, value in schema.items() if key != "description"}
        yield {
            "name": name,
            "in": "query",
            "description": schema["description"],
            "schema": _portable(without),
        }


def _responses(method: str, url: str, known: Operation) -> dict[str, Any]:
    fine: dict[str, Any] = {"description": "As asked."}
    if known.replies:
        fine["content"] = {
            kind: {"schema": _portable(schema)} for kind, schema in known.replies.items()
        }
    responses = {str(known.status): fine}
    if known.also is not None:
        responses[str(known.also)] = {"description": "There is nothing more to come."}
    for status in sorted(_faults(method, url)):
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
    return responses


def _faults(method: str, url: str) -> set[int]:
    kinds = list(_ALWAYS)
    kinds += _OF_CALLERS if _has_caller(url) else ()
    kinds += _OF_CHANGES if method != "get" else ()
    kinds += _OF_NOVAS if url.startswith(_NOVA) else ()
    return {faults.FAULTS[kind].status for kind in kinds}


def _statuses_of_faults() -> list[int]:
    kinds = (*_ALWAYS, *_OF_CALLERS, *_OF_CHANGES, *_OF_NOVAS)
    return sorted({faults.FAULTS[kind].status for kind in kinds})


def _fault(status: int) -> dict[str, Any]:
    told = [fault for fault in faults.FAULTS.values() if fault.status == status]
    names = sorted({fault.name for fault in told})
    response: dict[str, Any] = {
        "description": f"Refused: {', '.join(names)}.",
        "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Fault"}}},
    }
    if all(fault.retry_after_s is not None for fault in told):
        schema = {"type": "integer", "minimum": 0}
        response["headers"] = {"Retry-After": {"required": True, "schema": schema}}
    return response


def _microversion() -> dict[str, Any]:
    return {
        "name": microversions.HEADER,
        "in": "header",
        "description": f"`{microversions.SERVICE} 2.N`; {microversions.MINIMUM} without it.",
        "schema": {"type": "string"},
    }


def _has_caller(url: str) -> bool:
    return url.startswith(_OPEN_PREFIXES)


def _rules(method: str, url: str) -> list[str]:
    """Return the names of the rules that the policy asks for a method."""
    asked = (method.upper(), _shape(url.removeprefix(_NOVA[:-1])))
    return [
        rule.name
        for rule in policies.list_rules()
        for one in getattr(rule, "operations", ())
        if (one["method"], _shape(one["path"].partition(" (")[0])) == asked
    ]


def _shape(url: str) -> str:
    return _PARAMETER.sub("{}", url)


def _portable(schema: Any) -> Any:
    """Return a schema whose patterns end as JSON Schema has it; Python's `$` takes a newline."""
    if isinstance(schema, dict):
        return {_portable(key): _portable(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_portable(one) for one in schema]
    return schema.replace(r"\Z", "$") if isinstance(schema, str) else schema


def _sentence(of: Any) -> str:
    return (inspect.getdoc(of) or "").partition("\n")[0]
