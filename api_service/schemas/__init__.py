# SPDX-License-Identifier: Apache-2.0
"""Request bodies as JSON schemas, and the sentence that names what does not fit."""

from __future__ import annotations

import functools
import json
from typing import Any

import falcon
from jsonschema import Draft202012Validator, FormatChecker, TypeChecker, validators

from api_service.errors import BadRequest, RequestTooLarge
from common.messages import LIMIT_MAX, ROTATION_MAX

#: No honest request to this API comes near it.
MAX_BODY_BYTES = 114_688
MAX_DEPTH = 20

_NAME = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    # Printable, and no white space at either end (Nova's `name`).
    # `$` would let a last newline pass.
    "pattern": r"^(?!\s)[^\x00-\x1f\x7f]*(?<!\s)\Z",
}
METADATA_ITEMS: dict[str, Any] = {
    "type": "object",
    "patternProperties": {
        r"^[a-zA-Z0-9-_:. ]{1,255}\Z": {"type": "string", "maxLength": 255},
    },
    "additionalProperties": False,
}

CREATE_IMAGE = Draft202012Validator(
    {
        "type": "object",
        "properties": {
            "createImage": {
                "type": "object",
                "properties": {"name": _NAME, "metadata": METADATA_ITEMS},
                "required": ["name"],
                "additionalProperties": False,
            }
        },
        "required": ["createImage"],
        "additionalProperties": False,
    }
)


CREATE_BACKUP = Draft202012Validator(
    {
        "type": "object",
        "properties": {
            "createBackup": {
                "type": "object",
                "properties": {
                    "name": _NAME,
                    "backup_type": {"type": "string", "maxLength": 255},
                    # Nova takes the number as text, too.
                    "rotation": {
                        "type": ["integer", "string"],
                        "minimum": 0,
                        "maximum": ROTATION_MAX,
                        "pattern": r"^[0-9]{1,9}\Z",
                    },
                    "metadata": METADATA_ITEMS,
                },
                "required": ["name", "backup_type", "rotation"],
                "additionalProperties": False,
            }
        },
        "required": ["createBackup"],
        "additionalProperties": False,
    }
)


def _action(name: str, *bodies: dict[str, Any]) -> Draft202012Validator:
    """Return the schema of an action whose value is one of these."""
    return Draft202012Validator(
        {
            "type": "object",
            "properties": {name: {"anyOf": list(bodies)}},
            "required": [name],
            "additionalProperties": False,
        }
    )


#: Nova takes whatever stands there.
_ANYTHING: dict[str, Any] = {}
_NOTHING = {"type": "null"}

PAUSE, UNPAUSE = _action("pause", _ANYTHING), _action("unpause", _ANYTHING)
START, STOP = _action("os-start", _ANYTHING), _action("os-stop", _ANYTHING)
REBOOT = _action(
    "reboot",
    {
        "type": "object",
        "properties": {"type": {"enum": ["HARD", "Hard", "hard", "SOFT", "Soft", "soft"]}},
        "required": ["type"],
        "additionalProperties": False,
    },
)
LOCK, UNLOCK = _action("lock", _ANYTHING), _action("unlock", _ANYTHING)
#: From 2.73 on it may say why.
LOCK_WITH_REASON = _action(
    "lock",
    _NOTHING,
    {
        "type": "object",
        "properties": {"locked_reason": {"type": "string", "minLength": 1, "maxLength": 255}},
        "additionalProperties": False,
    },
)
RESET_STATE = _action(
    "os-resetState",
    {
        "type": "object",
        "properties": {"state": {"enum": ["active", "error"]}},
        "required": ["state"],
        "additionalProperties": False,
    },
)

#: What `POST /servers/{id}/action` may be.
ACTIONS = (
    CREATE_IMAGE,
    CREATE_BACKUP,
    PAUSE,
    UNPAUSE,
    START,
    STOP,
    REBOOT,
    LOCK_WITH_REASON,
    UNLOCK,
    RESET_STATE,
)

METADATA = Draft202012Validator(
    {
        "type": "object",
        "properties": {"metadata": METADATA_ITEMS},
        "required": ["metadata"],
        "additionalProperties": False,
    }
)
META = Draft202012Validator(
    {
        "type": "object",
        "properties": {"meta": METADATA_ITEMS | {"minProperties": 1, "maxProperties": 1}},
        "required": ["meta"],
        "additionalProperties": False,
    }
)


def _hostname(length: int, more: str) -> dict[str, Any]:
    return {
        "type": "string",
        "minLength": 2,
        "maxLength": length,
        "pattern": rf"^[a-zA-Z0-9][a-zA-Z0-9{more}-]*[a-zA-Z0-9]\Z",
    }


#: What `PUT /servers/{id}` may change, and from which version on. What is said of the guest
#: itself (addresses, host name, how its disk is divided) is kept and shown; here it means nothing.
_SERVER_FIELDS: tuple[tuple[tuple[int, int], str, dict[str, Any]], ...] = (
    ((2, 1), "name", _NAME),
    ((2, 1), "OS-DCF:diskConfig", {"enum": ["AUTO", "MANUAL"]}),
    ((2, 1), "accessIPv4", {"type": ["string", "null"], "format": "ipv4"}),
    ((2, 1), "accessIPv6", {"type": ["string", "null"], "format": "ipv6", "maxLength": 45}),
    (
        (2, 19),
        "description",
        {"type": ["string", "null"], "maxLength": 255, "pattern": r"^[^\x00-\x08\x0b-\x1f\x7f]*\Z"},
    ),
    ((2, 90), "hostname", _hostname(63, "")),
    # A later line of a name counts: now it may have dots.
    ((2, 94), "hostname", _hostname(255, ".")),
)
_FORMATS = FormatChecker(("ipv4", "ipv6"))


def server_fields(version: tuple[int, int]) -> dict[str, Any]:
    """Return what a server's user may say of it in a version, by name."""
    return {name: schema for since, name, schema in _SERVER_FIELDS if version >= since}


@functools.cache
def update_server(version: tuple[int, int]) -> Draft202012Validator:
    """Return the schema of `PUT /servers/{id}` in a version, (2, N)."""
    server = {
        "type": "object",
        "properties": server_fields(version),
        "additionalProperties": False,
    }
    return Draft202012Validator(
        {
            "type": "object",
            "properties": {"server": server},
            "required": ["server"],
            "additionalProperties": False,
        },
        format_checker=_FORMATS,
    )


ADJUST_JOB = Draft202012Validator(
    {
        "type": "object",
        "properties": {"bandwidth_limit": {"type": "integer", "minimum": 0, "maximum": LIMIT_MAX}},
        "required": ["bandwidth_limit"],
        "additionalProperties": False,
    }
)


def read_body(request: falcon.Request) -> dict[str, Any]:
    """Return a request's JSON object; raise BadRequest or RequestTooLarge."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise RequestTooLarge("Request is too large.")
    try:
        data = request.bounded_stream.read(MAX_BODY_BYTES + 1)
    except OSError:
        data = b""  # the connection broke, or the rest did not come in time
    if len(data) > MAX_BODY_BYTES:
        raise RequestTooLarge("Request is too large.")
    if len(data) < (request.content_length or 0):
        raise BadRequest("Malformed request body: it is shorter than its Content-Length.")
    try:
        body = json.loads(data, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequest(
            "The server could not comply with the request since it is either "
            "malformed or otherwise incorrect: the body is no JSON."
        ) from None
    if not isinstance(body, dict):
        raise BadRequest("Malformed request body: it must be a JSON object.")
    if _depth(body) > MAX_DEPTH:
        raise BadRequest(f"Malformed request body: it is nested more than {MAX_DEPTH} deep.")
    if not _is_text(body):
        raise BadRequest("Malformed request body: it holds half of a surrogate pair.")
    return body


def _is_whole(_checker: TypeChecker, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


#: To newer drafts of JSON Schema 3.0 is an integer. To Nova's (draft 4) it is none, nor to whoever
#: counts with it afterwards.
_Strict = validators.extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_whole),
)


def validate(validator: Draft202012Validator, body: dict[str, Any]) -> None:
    """Raise BadRequest naming the first field that does not fit."""
    strict = _Strict(validator.schema, format_checker=validator.format_checker)
    error = next(iter(sorted(strict.iter_errors(body), key=lambda found: list(found.path))), None)
    if error is None:
        return
    field = ".".join(str(part) for part in error.path)
    if not field:
        raise BadRequest(f"Invalid input: {error.message}")
    value = json.dumps(error.instance)[:255]
    raise BadRequest(
        f"Invalid input for field/attribute {field}. Value: {value}. {error.message[:500]}"
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; raise ValueError where a key comes twice: who checks it may see the other."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key comes twice")
    return made


def _no_constant(name: str) -> None:
    """Raise ValueError for what Python takes and JSON has not: NaN and the infinities."""
    raise ValueError(f"{name} is no JSON")


def _is_text(body: dict[str, Any]) -> bool:
    """Tell whether every string can be written down: JSON may escape what UTF-8 has not."""
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _depth(value: Any) -> int:
    """Return how deep containers are nested, without recursion."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        current, depth = todo.pop()
        children = current.values() if isinstance(current, dict) else current
        if not isinstance(current, dict | list):
            continue
        deepest = max(deepest, depth)
        todo.extend((child, depth + 1) for child in children)
    return deepest
