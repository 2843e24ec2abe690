# SPDX-License-Identifier: Apache-2.0
"""Query parameters as Nova takes them, and the pages that `limit` and `marker` cut."""

from __future__ import annotations

import datetime as dt
import urllib.parse
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import falcon
from oslo_utils import timeutils

from api_service.errors import BadRequest
from api_service.microversions import Version
from api_service.store.engine import compiled

T = TypeVar("T")

#: From here on a parameter that Nova has not is refused, before it is ignored.
STRICT = Version(2, 75)
_CHANGES_BEFORE = Version(2, 66)
_TEXT_MAX = 255
_NUMBER_MAX_DIGITS = 18
_FALSE = ("0", "false", "f", "no", "n", "off")
PAGING = frozenset({"limit", "marker"})


def require_known(request: falcon.Request, known: Collection[str]) -> None:
    """Raise BadRequest for a parameter that Nova has not, in the versions that are strict."""
    unknown = sorted(set(request.params) - set(known))
    if unknown and request.context.version >= STRICT:
        raise BadRequest(
            f"Additional properties are not allowed ({unknown[0][:64]!r} was unexpected)"
        )


def number(request: falcon.Request, name: str, default: int) -> int:
    """Return a whole number, zero or more; raise BadRequest if it is none."""
    text = request.get_param(name)
    if text is None:
        return default
    # `isdigit` alone is also true of a superscript two.
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBER_MAX_DIGITS):
        raise _invalid(name, f"Value: {text[:_TEXT_MAX]}. It must be a whole number, zero or more.")
    return int(text)


def is_true(request: falcon.Request, name: str) -> bool:
    """Tell whether a parameter is given and does not say no, in whatever spelling."""
    values = request.get_param_as_list(name) or ["0"]
    return str(values[0]).lower() not in _FALSE


def moment(request: falcon.Request, name: str) -> dt.datetime | None:
    """Return a time, in UTC if it names no zone; raise BadRequest if it is none."""
    text = request.get_param(name)
    if text is None:
        return None
    try:
        parsed: dt.datetime = timeutils.parse_isotime(text)
        return parsed.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise _invalid(name, f"Value: {text[:_TEXT_MAX]}. It is not a 'date-time'.") from None


def changes(request: falcon.Request) -> tuple[dt.datetime | None, dt.datetime | None]:
    """Return `changes-since` and, from its version on, `changes-before`."""
    since, before = moment(request, "changes-since"), None
    if request.context.version >= _CHANGES_BEFORE:
        before = moment(request, "changes-before")
    if since is not None and before is not None and since > before:
        raise BadRequest("The value of changes-since must be less than or equal to changes-before.")
    return since, before


def pattern(request: falcon.Request, name: str) -> str | None:
    """Return a parameter that is a regular expression, anchored or not, as Nova takes it.

    What cannot be matched in linear time (back references, look-around) is
    refused as what is no regular expression: 400. The length is looked at first.
    """
    text = request.get_param(name)
    if text is None:
        return None
    if len(text) > _TEXT_MAX:
        raise BadRequest(f"Invalid input for query parameters {name}: it is too long.")
    try:
        compiled(text)
    except ValueError as error:
        raise BadRequest(f"Invalid input for query parameters {name}: {error}.") from None
    return text


def one_of(request: falcon.Request, name: str, allowed: Collection[str], default: str) -> str:
    """Return a parameter that is one of some words; raise BadRequest if it is another."""
    text: str = request.get_param(name) or default
    if text not in allowed:
        raise _invalid(name, f"Value: {text[:64]}. It is not one of {', '.join(sorted(allowed))}.")
    return text


def page(
    request: falcon.Request, items: Sequence[T], id_of: Callable[[T], str], max_limit: int
) -> tuple[list[T], bool]:
    """Return the page of `items` that is asked for, and whether another follows.

    Raises BadRequest if the marker is none of them.
    """
    limit, marker = min(number(request, "limit", max_limit), max_limit), request.get_param("marker")
    first = 0
    if marker is not None:
        ids = [id_of(item) for item in items]
        if marker not in ids:
            raise BadRequest(f"marker [{marker[:_TEXT_MAX]}] not found")
        first = ids.index(marker) + 1
    return list(items[first : first + limit]), 0 < limit < len(items) - first


def next_link(request: falcon.Request, base_url: str, marker: str) -> dict[str, str]:
    """Return the link to the page after `marker`."""
    query = urllib.parse.urlencode({**request.params, "marker": marker}, doseq=True)
    return {"rel": "next", "href": f"{base_url}{request.path}?{query}"}


def _invalid(name: str, what: str) -> BadRequest:
    return BadRequest(f"Invalid input for query parameters {name}. {what}")
