# SPDX-License-Identifier: Apache-2.0
"""Who an instance belongs to and what it was made of, from its domain's metadata.

Our own namespace and Nova's use the same elements; ours wins where a domain has
both. A domain with neither gets the configured default owner, or is not an
instance of ours. Used by the announcer; pure functions over XML.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from common.reports import Flavor

OUR_NAMESPACE = "https://stillframe.dev/xmlns/instance/1.0"
NOVA_NAMESPACES = (
    "http://openstack.org/xmlns/libvirt/nova/1.1",
    "http://openstack.org/xmlns/libvirt/nova/1.0",
)
#: Says of an instance that it is ours alone, for a while, and to be shown to nobody.
THROW_AWAY = "throwAway"
_KIB_PER_MIB = 1024
#: What XML 1.0 has no way to say.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: The element's prefix, by its namespace: what people read in the definition.
_PREFIXES = dict.fromkeys(NOVA_NAMESPACES, "nova") | {OUR_NAMESPACE: "stillframe"}


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetadataChange:
    """The instance's element of one namespace, before (None: there was none) and after.

    Without the namespace: libvirt puts all of an element into it, and refuses one that
    names it already.
    """

    namespace: str
    prefix: str
    before: str | None
    after: str


def with_image(
    domain: ET.Element, image_id: str, image_properties: Mapping[str, str]
) -> MetadataChange:
    """Return what makes the metadata of a `<domain>` name another image as its root disk's.

    The element that is read from now is the one that changes; a domain with none gets
    one of ours, which says nothing else.
    """
    namespace, found = next(
        (
            (one, element)
            for one in (OUR_NAMESPACE, *NOVA_NAMESPACES)
            if (element := domain.find(f"metadata/{{{one}}}instance")) is not None
        ),
        (OUR_NAMESPACE, None),
    )
    name = f"{{{namespace}}}".__add__
    changed = ET.Element(name("instance")) if found is None else copy.deepcopy(found)
    for old in (*changed.findall(name("root")), *changed.findall(name("image"))):
        changed.remove(old)
    ET.SubElement(changed, name("root"), type="image", uuid=image_id)
    image = ET.SubElement(changed, name("image"), uuid=image_id)
    properties = ET.SubElement(image, name("imageProperties"))
    for key, value in sorted(image_properties.items()):
        ET.SubElement(properties, name("property"), name=as_text(key)).text = as_text(value)
    return MetadataChange(
        namespace=namespace,
        prefix=_PREFIXES[namespace],
        before=None if found is None else _plain(found, namespace),
        after=_plain(changed, namespace),
    )


def as_text(text: str) -> str:
    """Return what XML can say of a word from outside; libvirt refuses all else."""
    return _NO_XML.sub("\ufffd", text)


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


def _plain(element: ET.Element, namespace: str) -> str:
    """Return an element as text, without its namespace."""
    plain = copy.deepcopy(element)
    for one in plain.iter():
        one.tag = one.tag.removeprefix(f"{{{namespace}}}")
    plain.tail = None
    return ET.tostring(plain, encoding="unicode")


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
