# SPDX-License-Identifier: Apache-2.0
"""What a rebuild's body may hold, by microversion, and what of Nova's is not to be had here."""

from __future__ import annotations

import functools
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from api_service import schemas
from api_service.errors import BadRequest

_FORMATS = FormatChecker(("ipv4", "ipv6", "uuid"))
_YES = frozenset({True, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes"})
_NO = frozenset({False, "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no"})
_NEWEST = (2, 1 << 30)

#: (from version, to version, name, schema), beside what `PUT /servers/{id}` takes.
_FIELDS: tuple[tuple[tuple[int, int], tuple[int, int], str, dict[str, Any]], ...] = (
    ((2, 1), _NEWEST, "imageRef", {"type": "string", "format": "uuid"}),
    ((2, 1), _NEWEST, "adminPass", {"type": "string"}),
    ((2, 1), _NEWEST, "metadata", schemas.METADATA_ITEMS),
    ((2, 1), _NEWEST, "preserve_ephemeral", {"enum": sorted([*_YES, *_NO], key=str)}),
    ((2, 1), (2, 56), "personality", {"type": "array"}),
    ((2, 54), _NEWEST, "key_name", {"type": ["string", "null"], "minLength": 1, "maxLength": 255}),
    ((2, 57), _NEWEST, "user_data", {"type": ["string", "null"], "maxLength": 65535}),
    (
        (2, 63),
        _NEWEST,
        "trusted_image_certificates",
        {
            "type": ["array", "null"],
            "items": {"type": "string", "minLength": 1},
            "minItems": 1,
            "maxItems": 50,
            "uniqueItems": True,
        },
    ),
)

#: What is understood but cannot be done, unless it asks for nothing.
_NOT_HERE: dict[str, str] = {
    "preserve_ephemeral": "a rebuild here replaces the root disk alone; leave it out",
    "personality": "files are not put into disks here; use an image that has them",
    "key_name": "there are no key pairs here; leave it out, or send null",
    "user_data": "nothing here hands it to the guest; leave it out, or send null",
    "trusted_image_certificates": "images are proven by their hash here; leave it out",
}


@functools.cache
def rebuild(version: tuple[int, int]) -> Draft202012Validator:
    """Return the schema of the action `rebuild` in a version, (2, N)."""
    fields = schemas.server_fields(version) | {
        name: schema for since, until, name, schema in _FIELDS if since <= version <= until
    }
    body = {
        "type": "object",
        "properties": fields,
        "required": ["imageRef"],
        "additionalProperties": False,
    }
    return Draft202012Validator(
        {
            "type": "object",
            "properties": {"rebuild": body},
            "required": ["rebuild"],
            "additionalProperties": False,
        },
        format_checker=_FORMATS,
    )


def require_possible(asked: dict[str, Any]) -> None:
    """Raise BadRequest for what Nova may do and we do not, naming it and the way out."""
    for name, why in _NOT_HERE.items():
        value = asked.get(name)
        if value in _YES if name == "preserve_ephemeral" else value:
            raise BadRequest(f"Invalid input for field/attribute {name}: {why}.")
