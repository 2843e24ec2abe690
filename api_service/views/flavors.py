# SPDX-License-Identifier: Apache-2.0
"""Flavors, as `GET /flavors` shows them."""

from __future__ import annotations

from typing import Any

from api_service.microversions import Version
from api_service.views.viewer import Viewer, links
from common.reports import Flavor


def flavor(flavor_: Flavor, viewer: Viewer) -> dict[str, Any]:
    """Return a flavor's body, as `GET /flavors/{id}` has it."""
    body: dict[str, Any] = {
        "id": flavor_.name,
        "name": flavor_.name,
        "vcpus": flavor_.vcpus,
        "ram": flavor_.memory_mib,
        "disk": flavor_.disk_gib,
        "swap": flavor_.swap_mib or "",
        "OS-FLV-EXT-DATA:ephemeral": flavor_.ephemeral_gib,
        "OS-FLV-DISABLED:disabled": False,
        "os-flavor-access:is_public": True,
        "rxtx_factor": 1.0,
        "links": links(viewer, "flavors", flavor_.name),
    }
    if viewer.version >= Version(2, 55):
        body["description"] = None
    if viewer.version >= Version(2, 61):
        body["extra_specs"] = {}
    if viewer.version >= Version(2, 75):
        body["swap"] = flavor_.swap_mib
    return body


def flavor_summary(flavor_: Flavor, viewer: Viewer) -> dict[str, Any]:
    """Return an entry of `GET /flavors`."""
    body = {
        "id": flavor_.name,
        "name": flavor_.name,
        "links": links(viewer, "flavors", flavor_.name),
    }
    return body | ({"description": None} if viewer.version >= Version(2, 55) else {})
