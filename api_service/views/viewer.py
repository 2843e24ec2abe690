# SPDX-License-Identifier: Apache-2.0
"""Who looks, and what every body needs of that: links, and times as Nova writes them."""

from __future__ import annotations

import dataclasses
import datetime as dt

from api_service.microversions import Version


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who looks, from where, and in which version of the API."""

    base_url: str
    version: Version
    is_admin: bool
    #: May see where a server runs, and the other `OS-EXT-SRV-ATTR`.
    sees_hosts: bool
    #: The hosts whose agent is up, for `host_status`.
    live_hosts: frozenset[str] = frozenset()


def links(viewer: Viewer, collection: str, item: str) -> list[dict[str, str]]:
    """Return the links of a thing: its own, and the one without a version."""
    return [
        {"rel": "self", "href": f"{viewer.base_url}/v2.1/{collection}/{item}"},
        {"rel": "bookmark", "href": f"{viewer.base_url}/{collection}/{item}"},
    ]


def time_of(value: dt.datetime) -> str:
    """Return a time as Nova's bodies hold it."""
    return value.strftime("%Y-%m-%dT%H:%M:%SZ")
