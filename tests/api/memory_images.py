# SPDX-License-Identifier: Apache-2.0
"""An ImageService in memory, with Glance's rules as far as the API leans on them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from typing import Any

from common.errors import StillframeError
from common.glance import Image, ImageNotFound, ImageRefused

#: What is an attribute of an image and no property of its own.
_ATTRIBUTES = {
    "id",
    "size",
    "virtual_size",
    "name",
    "owner",
    "visibility",
    "disk_format",
    "container_format",
    "min_disk",
    "min_ram",
    "protected",
    "tags",
    "created_at",
    "updated_at",
}
_MAX_PROPERTIES = 128


class MemoryImages:
    """Images by id; `failure` is raised by every call while it is set.

    `created` and `deleted` list what was ever asked for, so that a test can tell
    "never made" from "made and removed".
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.records: dict[str, dict[str, Any]] = {}
        self.created: list[str] = []
        self.deleted: list[str] = []
        #: Projects by the image that is shared with them.
        self.shared_with: dict[str, set[str]] = {}
        self.failure: StillframeError | None = None
        #: How often it was raised.
        self.failed = 0
        #: Set by a test to hold every `create` until the event is set.
        self.gate: threading.Event | None = None

    def create(self, image_id: str, record: Mapping[str, Any]) -> Image:
        """Create a `queued` record."""
        if self.gate is not None:
            self.gate.wait(10)
        self._fail()
        with self._lock:
            if image_id in self.records:
                raise ImageRefused("the image exists already", 409)
            if len(set(record) - _ATTRIBUTES) > _MAX_PROPERTIES:
                raise ImageRefused("the image service refuses: too many properties", 413)
            self.records[image_id] = {**record, "id": image_id, "status": "queued"}
            self.created.append(image_id)
            return self._image(image_id)

    def show(self, image_id: str) -> Image:
        """Return a record."""
        self._fail()
        with self._lock:
            return self._image(image_id)

    def look(self, image_id: str) -> Image:
        """Return a record, as `show` does."""
        return self.show(image_id)

    def update(
        self, image_id: str, changes: Mapping[str, Any], remove: tuple[str, ...] = ()
    ) -> None:
        """Change a record."""
        self._fail()
        with self._lock:
            self._image(image_id)
            self.records[image_id].update(changes)
            for name in remove:
                self.records[image_id].pop(name, None)

    def delete(self, image_id: str) -> None:
        """Delete a record; one that is gone is fine."""
        self._fail()
        with self._lock:
            if self.records.get(image_id, {}).get("protected"):
                raise ImageRefused(f"Image {image_id} is protected and cannot be deleted.", 403)
            self.deleted.append(image_id)
            self.records.pop(image_id, None)

    def made_by(self, property_name: str, value: str) -> list[Image]:
        """Return the records with this property."""
        self._fail()
        with self._lock:
            found = [key for key, one in self.records.items() if one.get(property_name) == value]
            return [self._image(image_id) for image_id in found]

    def found(self, filters: Mapping[str, str]) -> list[Image]:
        """Return the records with these attributes."""
        self._fail()
        with self._lock:
            return [
                self._image(image_id)
                for image_id, one in self.records.items()
                if all(one.get(name) == value for name, value in filters.items())
            ]

    def members(self, image_id: str) -> frozenset[str]:
        """Return the projects that an image is shared with."""
        self._fail()
        return frozenset(self.shared_with.get(image_id, ()))

    def add(self, **record: Any) -> str:
        """Add an image as somebody else has made it, active; return its id."""
        image_id = str(uuid.uuid4())
        self.records[image_id] = {"id": image_id, "status": "active", **record}
        return image_id

    def activate(self, image_id: str) -> None:
        """Do what an agent's upload does."""
        self.records[image_id]["status"] = "active"

    def _fail(self) -> None:
        if self.failure is not None:
            self.failed += 1
            raise self.failure

    def _image(self, image_id: str) -> Image:
        if image_id not in self.records:
            raise ImageNotFound("the image does not exist")
        record = self.records[image_id]
        properties = {
            key: value
            for key, value in record.items()
            if key not in _ATTRIBUTES | {"status"} and isinstance(value, str)
        }
        return Image(
            id=image_id,
            name=record.get("name"),
            status=record["status"],
            owner=record.get("owner"),
            size_bytes=record.get("size"),
            hash_algorithm=None,
            hash_value=None,
            disk_format=record.get("disk_format"),
            container_format=record.get("container_format"),
            min_disk_gib=record.get("min_disk", 0),
            min_ram_mib=record.get("min_ram", 0),
            properties=properties,
            virtual_bytes=record.get("virtual_size"),
            is_protected=record.get("protected", False),
            visibility=record.get("visibility", "private"),
            created_at=record.get("created_at", ""),
            updated_at=record.get("updated_at", ""),
        )
