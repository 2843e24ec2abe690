# SPDX-License-Identifier: Apache-2.0
"""A shelf of images that stands in for Glance, whole and increments."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.glance import Body, Image, ImageNotFound

MIB = 1 << 20


class Records:
    """Images in memory: what the shelves of several tests have in common."""

    def __init__(self) -> None:
        self.records: dict[str, Image] = {}
        self.data: dict[str, bytes] = {}

    def keep(self, image_id: str, data: bytes, **other: Any) -> Image:
        """Keep an active qcow2; `other` are fields of its record that are not what they were."""
        record = Image(
            id=image_id,
            name="nightly",
            status="active",
            owner="a project",
            size_bytes=len(data),
            hash_algorithm="sha512",
            hash_value=hashlib.sha512(data).hexdigest(),
            disk_format="qcow2",
            container_format="bare",
            min_disk_gib=0,
            min_ram_mib=0,
            properties={},
        )
        image = dataclasses.replace(record, **other)
        self.records[image.id], self.data[image.id] = image, data
        return image

    def show(self, image_id: str) -> Image:
        if image_id not in self.records:
            raise ImageNotFound("the image does not exist")
        return self.records[image_id]


class Shelf(Records):
    """An ImageService of increments, which can be written to."""

    def __init__(self) -> None:
        super().__init__()
        self.downloading: Callable[[], None] = lambda: None

    def put(self, image_id: str, content: Path | bytes, parent: str | None, **other: Any) -> None:
        """Upload an image; `other` are fields of its record that are not what they were."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        properties = {"stillframe_sha512": hashlib.sha512(data).hexdigest(), "kept": "yes"}
        if parent is not None:
            below = self.records[parent].properties.get("stillframe_chain_length", "0")
            length = str(int(below) + 1)
            properties |= {"stillframe_parent": parent, "stillframe_chain_length": length}
        self.keep(image_id, data, **({"properties": properties} | other))

    def download(self, image_id: str) -> Iterator[bytes]:
        self.downloading()
        data = self.data[image_id]
        yield from (data[at : at + MIB] for at in range(0, len(data), MIB))

    def duplicate_record(
        self, image_id: str, new_id: str, _suffix: str, changes: Mapping[str, str], without: Any
    ) -> None:
        found = self.show(image_id)
        kept = {name: value for name, value in found.properties.items() if name not in without}
        self.records[new_id] = dataclasses.replace(
            found, id=new_id, status="queued", properties=kept | dict(changes)
        )

    def update(self, image_id: str, changes: Mapping[str, str]) -> None:
        self.show(image_id).properties.update(changes)

    def upload(self, image_id: str, body: Body) -> None:
        properties = self.show(image_id).properties
        self.put(image_id, b"".join(bytes(chunk) for chunk in body), None)
        self.records[image_id] = dataclasses.replace(self.records[image_id], properties=properties)

    def delete(self, image_id: str) -> None:
        self.records.pop(image_id, None)
