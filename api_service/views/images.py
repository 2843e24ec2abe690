# SPDX-License-Identifier: Apache-2.0
"""Images, as Nova's old proxy to Glance showed them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from oslo_utils import timeutils

from api_service.views.viewer import Viewer, links, time_of
from common.glance import Image

#: Nova's status, and how far it says the image is, by Glance's.
_STATUS = {
    "active": ("ACTIVE", 100),
    "queued": ("SAVING", 25),
    "saving": ("SAVING", 50),
    "importing": ("SAVING", 50),
    "uploading": ("SAVING", 50),
    "deleted": ("DELETED", 0),
    "pending_delete": ("DELETED", 0),
    "killed": ("ERROR", 0),
}
_UNKNOWN = ("UNKNOWN", 0)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def image_status(image_: Image) -> str:
    """Return Nova's word for where an image stands."""
    return _STATUS.get(image_.status, _UNKNOWN)[0]


def image_time(text: str) -> dt.datetime:
    """Return a time as Glance writes it; what Glance does not tell is long ago."""
    parsed: dt.datetime = timeutils.parse_isotime(text) if text else _EPOCH
    return parsed


def image_summary(image_: Image, viewer: Viewer) -> dict[str, Any]:
    """Return an entry of `GET /images`."""
    own, bookmark = links(viewer, "images", image_.id)
    alternate = {
        "rel": "alternate",
        "type": "application/vnd.openstack.image",
        "href": bookmark["href"],
    }
    return {"id": image_.id, "name": image_.name, "links": [own, bookmark, alternate]}


def image(image_: Image, viewer: Viewer) -> dict[str, Any]:
    """Return an image's body, as `GET /images/{id}` has it."""
    status, progress = _STATUS.get(image_.status, _UNKNOWN)
    body = image_summary(image_, viewer) | {
        "status": status,
        "progress": progress,
        "created": time_of(image_time(image_.created_at)),
        "updated": time_of(image_time(image_.updated_at)),
        "minDisk": image_.min_disk_gib,
        "minRam": image_.min_ram_mib,
        "metadata": image_.properties,
        "OS-EXT-IMG-SIZE:size": image_.size_bytes,
    }
    server_id = image_.properties.get("instance_uuid")
    if server_id:
        body["server"] = {"id": server_id, "links": links(viewer, "servers", server_id)}
    return body
