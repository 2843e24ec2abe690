# SPDX-License-Identifier: Apache-2.0
"""The versions documents."""

from __future__ import annotations

from typing import Any

from api_service.microversions import MAXIMUM, MINIMUM


def version_document(version_id: str, base_url: str) -> dict[str, Any]:
    """Return one entry of the versions documents."""
    is_current = version_id == "v2.1"
    return {
        "id": version_id,
        "status": "CURRENT" if is_current else "SUPPORTED",
        "version": str(MAXIMUM) if is_current else "",
        "min_version": str(MINIMUM) if is_current else "",
        "updated": "2013-07-23T11:33:21Z" if is_current else "2011-01-21T11:33:21Z",
        "links": [{"rel": "self", "href": f"{base_url}/{'v2.1' if is_current else 'v2'}/"}],
    }


def our_version_document(base_url: str) -> dict[str, Any]:
    """Return what `/v1` says of itself."""
    links = {"self": "/v1/", "describedby": "/v1/openapi.json"}
    return {
        "id": "v1",
        "status": "CURRENT",
        "links": [{"rel": rel, "href": base_url + path} for rel, path in links.items()],
    }
