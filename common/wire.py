# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses on the wire: `to_wire` makes JSON types of one, `from_wire` rebuilds it.

Unknown fields are ignored (a newer sender may add some); a missing or wrong one
raises MalformedMessage naming the field.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

from common.errors import MalformedMessage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Base of what crosses the wire."""

    def to_wire(self) -> dict[str, Any]:
        """Return the message as a dict of JSON types."""
        return {
            field.name: _encode(getattr(self, field.name)) for field in dataclasses.fields(self)
        }

    @classmethod
    def from_wire(cls, wire: object) -> Self:
        """Rebuild a message; raise MalformedMessage naming the field that does not fit."""
        return typing.cast(Self, _decode(cls, wire, cls.__name__))


def _encode(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_wire()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _decode(kind: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return _decode(inner, value, name)
    if origin is tuple:
        _require(isinstance(value, list | tuple), name, "a list", value)
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, one, f"{name}[{at}]") for at, one in enumerate(value))
    if origin is dict:
        _require(isinstance(value, Mapping), name, "an object", value)
        return {str(key): _decode(str, one, f"{name}.{key}") for key, one in value.items()}
    return _decode_plain(kind, value, name)


def _decode_plain(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_message(typing.cast(type[Message], kind), value, name)
    if issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            allowed = ", ".join(str(member.value) for member in kind)
            raise MalformedMessage(f"{name} must be one of {allowed}, not {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(is_kind, name, f"of type {kind.__name__}", value)
    return value


def _decode_message(kind: type[Message], value: Any, name: str) -> Message:
    _require(isinstance(value, Mapping), name, "an object", value)
    hints = _hints(typing.cast(typing.Any, kind))
    known = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            inner = f"{name}.{field.name}"
            known[field.name] = _decode(hints[field.name], value[field.name], inner)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise MalformedMessage(f"{name}.{field.name} is missing")
    return kind(**known)


#: Reading annotations takes ten times as long as a message; they never change.
_hints = functools.cache(typing.get_type_hints)


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise MalformedMessage(f"{name} must be {expected}, not {type(value).__name__}")
