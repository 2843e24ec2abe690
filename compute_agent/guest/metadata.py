# SPDX-License-Identifier: Apache-2.0
"""Who an instance belongs to and what it was made of, from its domain's metadata.

Our own namespace and Nova's use the same elements; ours wins where a domain has
both. A domain with neither gets the configured default owner, or is not an
instance of ours. Used by the announcer; pure functions over XML.
"""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ET

from common.reports import Flavor

OUR_NAMESPACE = "https://stillframe.dev/xmlns/instance/1.0"
NOVA_NAMESPACES = (
    "http://openstack.org/xmlns/libvirt/nova/1.1",
    "http://openstack.org/xmlns/libvirt/nova/1.0",
)
#: Says of an instance that it is ours alone, for a while, and to be shown to nobody.
THROW_AWAY = "throwAway"
_KIB_PER_MIB = 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Project and user of an instance; the names are for people and may be unknown."""

    project_id: str
    project_name: str | None = None
    user_id: str
    user_name: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InstanceMetadata:
    """What the metadata tells; None where it is silent."""

    name: str | None = None
    owner: Owner | None = None
    flavor: Flavor | None = None
    image_ref: str | None = None
    image_properties: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Nobody's, and not to be announced.
    is_throw_away: bool = False


def read(domain: ET.Element) -> InstanceMetadata:
    """Return the metadata of a `<domain>` element; empty if it has none of a known kind."""
    for namespace in (OUR_NAMESPACE, *NOVA_NAMESPACES):
        element = domain.find(f"metadata/{{{namespace}}}instance")
        if element is not None:
            return _Reader(element, namespace).read()
    return InstanceMetadata()


def flavor_of(domain: ET.Element, root_bytes: int) -> Flavor:
    """Return a flavor made from the domain's own sizes, for metadata without one."""
    vcpus = int(domain.findtext("vcpu", "1"))
    memory_mib = int(domain.findtext("memory", "0")) // _KIB_PER_MIB
    return Flavor(
        name=f"{vcpus}-{memory_mib}",
        vcpus=vcpus,
        memory_mib=memory_mib,
        disk_gib=math.ceil(root_bytes / 2**30),
    )


class _Reader:
    """Finds elements of one namespace below `<instance>`."""

    def __init__(self, element: ET.Element, namespace: str) -> None:
        self._element = element
        self._namespace = namespace

    def read(self) -> InstanceMetadata:
        root = self._find("root")
        image_ref = root.get("uuid") if root is not None and root.get("type") == "image" else None
        return InstanceMetadata(
            name=self._text("name"),
            owner=self._owner(),
            flavor=self._flavor(),
            image_ref=image_ref,
            image_properties=self._image_properties(),
            is_throw_away=self._find(THROW_AWAY) is not None,
        )

    def _owner(self) -> Owner | None:
        project, user = self._find("owner/project"), self._find("owner/user")
        if project is None or not project.get("uuid"):
            return None
        project_id = project.get("uuid", "")
        return Owner(
            project_id=project_id,
            project_name=project.text,
            user_id=(user.get("uuid") if user is not None else None) or project_id,
            user_name=user.text if user is not None else None,
        )

    def _flavor(self) -> Flavor | None:
        element = self._find("flavor")
        if element is None:
            return None
        return Flavor(
            name=element.get("name", "unknown"),
            vcpus=self._number("flavor/vcpus"),
            memory_mib=self._number("flavor/memory"),
            disk_gib=self._number("flavor/disk"),
            ephemeral_gib=self._number("flavor/ephemeral"),
            swap_mib=self._number("flavor/swap"),
        )

    def _image_properties(self) -> dict[str, str]:
        properties = self._element.iterfind(self._path("image/imageProperties/property"))
        return {one.get("name", ""): one.text or "" for one in properties if one.get("name")}

    def _path(self, path: str) -> str:
        return "/".join(f"{{{self._namespace}}}{part}" for part in path.split("/"))

    def _find(self, path: str) -> ET.Element | None:
        return self._element.find(self._path(path))

    def _text(self, path: str) -> str | None:
        return self._element.findtext(self._path(path))

    def _number(self, path: str) -> int:
        text = self._text(path)
        return int(text) if text and text.isdigit() else 0
