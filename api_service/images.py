# SPDX-License-Identifier: Apache-2.0
"""The image records that the API makes: what Nova writes on a snapshot, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from api_service.store.records import Instance
from common.context import RequestContext

#: Never inherited: keys and signatures of the old image say nothing about the new one.
_NOT_INHERITED = frozenset(
    {
        "cache_in_nova",
        "bittorrent",
        "cinder_encryption_key_id",
        "cinder_encryption_key_deletion_policy",
        "img_signature",
        "img_signature_hash_method",
        "img_signature_key_type",
        "img_signature_certificate_uuid",
    }
)
_VALUE_MAX = 255


class ImageRecords(Protocol):
    """What the use cases need of Glance (common.glance.ImageService)."""

    def create(self, image_id: str, record: Mapping[str, Any]) -> Any:
        """Create a record of the given id."""

    def show(self, image_id: str) -> Any:
        """Return a record."""

    def delete(self, image_id: str) -> None:
        """Delete a record; one that is gone is fine."""


def snapshot_record(
    instance: Instance, caller: RequestContext, name: str, metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Return the record of a snapshot's image, as Glance's v2 API takes it.

    The user's metadata comes last and may override (Nova's tested contract:
    even `image_type`), so nothing of ours may be concluded from it later.
    """
    inherited = {
        key: value[:_VALUE_MAX]
        for key, value in instance.image_properties.items()
        if key not in _NOT_INHERITED and not key.startswith("os_glance")
    }
    properties = {
        **inherited,
        "instance_uuid": instance.uuid,
        "user_id": caller.user_id or instance.user_id,
        "image_type": "snapshot",
        **({"base_image_ref": instance.image_ref} if instance.image_ref else {}),
        **metadata,
    }
    return {
        **properties,
        "name": name,
        "owner": instance.project_id,
        "visibility": "private",
        "min_disk": instance.flavor.disk_gib,
        "min_ram": 0,
    }
