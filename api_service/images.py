# SPDX-License-Identifier: Apache-2.0
"""The image records that the API makes: what Nova writes on a snapshot, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from api_service.errors import BadRequest
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

#: Attributes of a Glance record: our credentials may write them, a tenant's metadata must not.
_ATTRIBUTES = frozenset(
    {
        "checksum",
        "container_format",
        "created_at",
        "direct_url",
        "disk_format",
        "file",
        "id",
        "locations",
        "members",
        "min_disk",
        "min_ram",
        "name",
        "os_hash_algo",
        "os_hash_value",
        "os_hidden",
        "owner",
        "protected",
        "schema",
        "self",
        "size",
        "status",
        "stores",
        "tags",
        "updated_at",
        "virtual_size",
        "visibility",
    }
)
#: Prefixes of properties that only Glance and we write.
_RESERVED_PREFIXES = ("os_glance", "stillframe_")


class ImageRecords(Protocol):
    """What the use cases need of Glance (common.glance.ImageService)."""

    def create(self, image_id: str, record: Mapping[str, Any]) -> Any:
        """Create a record of the given id."""

    def look(self, image_id: str) -> Any:
        """Return a record, in one try."""

    def members(self, image_id: str) -> Any:
        """Return the projects that a shared image is shared with."""

    def show(self, image_id: str) -> Any:
        """Return a record; raise ImageNotFound."""

    def found(self, filters: Mapping[str, str]) -> Any:
        """Return the records, of every project, that Glance's filters leave."""

    def delete(self, image_id: str) -> None:
        """Delete a record; one that is gone is fine."""

    def made_by(self, property_name: str, value: str) -> Any:
        """Return the records, of every project, that carry a property with this value."""


def snapshot_record(
    instance: Instance,
    caller: RequestContext,
    name: str,
    metadata: Mapping[str, str],
    backup_type: str | None = None,
) -> dict[str, Any]:
    """Return the record of a snapshot's or (with a type) a backup's image, for Glance's v2 API.

    The user's metadata comes last and may override (Nova's tested contract: even
    `image_type`, though not `backup_type`), so nothing of ours may be concluded from
    it later. Raises BadRequest for metadata that would be no property but the record itself.
    """
    for key in metadata:
        if _is_reserved(key):
            raise BadRequest(
                f"Invalid input for field/attribute metadata. Value: {key}. "
                "It is not a property that may be given to an image."
            )
    inherited = {
        key: value[:_VALUE_MAX]
        for key, value in instance.image_properties.items()
        if key not in _NOT_INHERITED and not _is_reserved(key)
    }
    properties = {
        **inherited,
        "instance_uuid": instance.uuid,
        "user_id": caller.user_id or instance.user_id,
        "image_type": "snapshot" if backup_type is None else "backup",
        **({"base_image_ref": instance.image_ref} if instance.image_ref else {}),
        **metadata,
        **({} if backup_type is None else {"backup_type": backup_type}),
    }
    return {
        **properties,
        "name": name,
        "owner": instance.project_id,
        "visibility": "private",
        "min_disk": instance.flavor.disk_gib,
        "min_ram": 0,
    }


def _is_reserved(key: str) -> bool:
    return key.lower() in _ATTRIBUTES or key.lower().startswith(_RESERVED_PREFIXES)
