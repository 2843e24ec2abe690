# SPDX-License-Identifier: Apache-2.0
"""What `POST /servers` may hold, by microversion, and what of Nova's is not to be had here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from api_service import schemas
from api_service.errors import BadRequest

_FORMATS = FormatChecker(("ipv4", "ipv6", "uuid"))
_NEWEST = (2, 1 << 30)
_WORD = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\x00-\x1f\x7f]*\Z"}
_MAY_BE_NULL = {"type": ["string", "null"], "maxLength": 65535}
_ANY_LIST: dict[str, Any] = {"type": "array"}
_COUNT = {"type": ["integer", "string"], "minimum": 1, "pattern": r"^[1-9][0-9]{0,8}\Z"}
_TRUTH = {
    "enum": [
        *(True, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes"),
        *(False, "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no"),
    ]
}
_NETWORKS: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            # In Nova a UUID; libvirt's networks are known by their names, too.
            "uuid": _WORD | {"maxLength": 64},
            "port": {"type": ["string", "null"]},
            "fixed_ip": {"type": "string"},
            "tag": _WORD | {"maxLength": 60},
        },
        "additionalProperties": False,
    },
}

#: (from version, to version, name, schema), beside what `PUT /servers/{id}` takes.
_FIELDS: tuple[tuple[tuple[int, int], tuple[int, int], str, dict[str, Any]], ...] = (
    ((2, 1), _NEWEST, "imageRef", {"oneOf": [{"type": "string", "format": "uuid"}, {"const": ""}]}),
    (
        (2, 1),
        _NEWEST,
        "flavorRef",
        {"type": ["string", "integer"], "minLength": 1, "maxLength": 255},
    ),
    ((2, 1), _NEWEST, "adminPass", {"type": "string", "maxLength": 255}),
    ((2, 1), _NEWEST, "metadata", schemas.METADATA_ITEMS),
    ((2, 1), (2, 36), "networks", _NETWORKS),
    ((2, 37), _NEWEST, "networks", {"oneOf": [_NETWORKS, {"enum": ["none", "auto"]}]}),
    ((2, 1), _NEWEST, "availability_zone", _WORD),
    (
        (2, 1),
        _NEWEST,
        "security_groups",
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": _WORD},
                "additionalProperties": False,
            },
        },
    ),
    ((2, 1), _NEWEST, "block_device_mapping", _ANY_LIST),
    (
        (2, 1),
        _NEWEST,
        "block_device_mapping_v2",
        {"type": "array", "items": {"type": "object"}, "maxItems": 255},
    ),
    ((2, 1), _NEWEST, "min_count", _COUNT),
    ((2, 1), _NEWEST, "max_count", _COUNT),
    ((2, 1), _NEWEST, "return_reservation_id", _TRUTH),
    ((2, 1), _NEWEST, "config_drive", {"anyOf": [_TRUTH, {"type": "null"}]}),
    ((2, 1), _NEWEST, "key_name", _WORD),
    ((2, 1), _NEWEST, "user_data", _MAY_BE_NULL),
    ((2, 1), (2, 56), "personality", _ANY_LIST),
    ((2, 52), _NEWEST, "tags", _ANY_LIST | {"maxItems": 50}),
    ((2, 63), _NEWEST, "trusted_image_certificates", {"type": ["array", "null"]}),
    ((2, 74), _NEWEST, "host", _WORD),
    ((2, 74), _NEWEST, "hypervisor_hostname", _WORD),
)
_HINTS = ("os:scheduler_hints", "OS-SCH-HNT:scheduler_hints")
_NETWORKS_NEEDED = (2, 37)
#: They are recorded in one transaction, which others wait for.
MOST_AT_ONCE = 100


@functools.cache
def create_server(version: tuple[int, int]) -> Draft202012Validator:
    """Return the schema of `POST /servers` in a version, (2, N)."""
    fields = schemas.server_fields(version) | {
        name: schema for since, until, name, schema in _FIELDS if since <= version <= until
    }
    needed = ["networks"] if version >= _NETWORKS_NEEDED else []
    server = {
        "type": "object",
        "properties": fields,
        "required": ["name", "flavorRef", *needed],
        "additionalProperties": False,
    }
    return Draft202012Validator(
        {
            "type": "object",
            "properties": {"server": server} | {name: {"type": "object"} for name in _HINTS},
            "required": ["server"],
            "additionalProperties": False,
        },
        format_checker=_FORMATS,
    )


def require_possible(body: dict[str, Any]) -> None:
    """Raise BadRequest for what Nova may do and we do not, naming it and the way out."""
    for name in _HINTS:
        if body.get(name):
            raise _refused(name, "hosts are chosen by their room alone; leave it out")
    server = body["server"]
    for name, asks, why in _NOT_HERE:
        if asks(server.get(name)):
            raise _refused(name, why)
    for group in server.get("security_groups", ()):
        if group.get("name") != "default":
            raise BadRequest(f"Security group {group.get('name')} not found.")
    for device in server.get("block_device_mapping_v2", ()):
        _require_root_disk(device, server.get("imageRef"))
    if not server.get("imageRef"):
        raise BadRequest("Missing imageRef attribute")


def counts_of(server: dict[str, Any]) -> tuple[int, int]:
    """Return how many servers are asked for, at least and at most.

    Raises BadRequest for what cannot be.
    """
    least = int(server.get("min_count", 1))
    most = int(server.get("max_count", least))
    if least > most:
        raise BadRequest("min_count must be <= max_count")
    if least > MOST_AT_ONCE:
        raise _refused(
            "min_count", f"a request makes at most {MOST_AT_ONCE} servers; ask again for more"
        )
    if most > 1 and "hostname" in server:
        raise BadRequest("Unable to allocate a single hostname to multiple instances.")
    return least, min(most, MOST_AT_ONCE)


def wants_reservation(server: dict[str, Any]) -> bool:
    """Tell whether the answer is to name the request, and not a server."""
    return _is_yes(server.get("return_reservation_id"))


def networks_of(server: dict[str, Any], default: str | None) -> tuple[str, ...]:
    """Return the networks of a new server; `default` is for who asks for none in particular.

    Raises BadRequest for a network that is named by a port or an address.
    """
    asked: Any = server.get("networks") or "auto"
    if asked in ("none", "auto"):
        return (default,) if asked == "auto" and default else ()
    for network in asked:
        if network.get("port") or network.get("fixed_ip"):
            raise _refused("networks", "there are no ports or fixed addresses here; name networks")
        if not network.get("uuid"):
            raise _refused("networks", "each needs the name or id of a libvirt network as uuid")
    return tuple(network["uuid"] for network in asked)


def _asks(value: Any) -> bool:
    return bool(value)


def _is_yes(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "on", "yes")


#: What is understood but cannot be done: the field, what asks for it, and why not.
_NOT_HERE: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("block_device_mapping", _asks, "there are no volumes here; name an image"),
    ("config_drive", _is_yes, "there are no config drives here; leave it out"),
    ("key_name", _asks, "there are no key pairs here; use an image that has its keys"),
    ("user_data", _asks, "nothing here hands it to the guest; leave it out"),
    ("personality", _asks, "files are not put into disks here; use an image that has them"),
    ("tags", _asks, "servers have no tags here; use metadata"),
    ("trusted_image_certificates", _asks, "images are proven by their hash here; leave it out"),
)
#: What stock clients say beside imageRef: its image is the root disk.
_ROOT_DISK = {"boot_index": (0, "0"), "source_type": ("image",), "destination_type": ("local",)}


def _require_root_disk(device: dict[str, Any], image_id: str | None) -> None:
    says = all(device.get(name) in allowed for name, allowed in _ROOT_DISK.items())
    if not says or (image_id and device.get("uuid") != image_id):
        raise _refused(
            "block_device_mapping_v2", "a server here has one disk, of its image; leave it out"
        )


def _refused(name: str, why: str) -> BadRequest:
    return BadRequest(f"Invalid input for field/attribute {name}: {why}.")
