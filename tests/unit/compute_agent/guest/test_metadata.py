# SPDX-License-Identifier: Apache-2.0
"""Owner, flavor and image are read from our metadata or Nova's, alike."""

from __future__ import annotations

import pytest

from common.reports import Flavor
from compute_agent.guest import description, metadata
from compute_agent.guest.metadata import Owner

INSTANCE = """
<domain><vcpu>2</vcpu><memory>524288</memory><metadata>
<x:instance xmlns:x="{namespace}">
  <x:name>web-1</x:name>
  <x:flavor name="m1.small"><x:memory>512</x:memory><x:disk>5</x:disk><x:swap>0</x:swap>
    <x:ephemeral>1</x:ephemeral><x:vcpus>2</x:vcpus></x:flavor>
  <x:owner><x:user uuid="u-1">ann</x:user><x:project uuid="p-1">shop</x:project></x:owner>
  <x:image><x:imageProperties><x:property name="hw_qemu_guest_agent">yes</x:property>
  </x:imageProperties></x:image>
  <x:root type="image" uuid="i-1"/>
</x:instance></metadata></domain>
"""


@pytest.mark.parametrize(
    "namespace", [metadata.OUR_NAMESPACE, *metadata.NOVA_NAMESPACES], ids=["ours", "1.1", "1.0"]
)
def test_metadata_of_each_namespace_tells_the_same(namespace: str) -> None:
    known = metadata.read(description.parse(INSTANCE.format(namespace=namespace)))
    assert known.name == "web-1"
    assert known.owner == Owner(
        project_id="p-1", project_name="shop", user_id="u-1", user_name="ann"
    )
    assert known.flavor == Flavor(
        name="m1.small", vcpus=2, memory_mib=512, disk_gib=5, ephemeral_gib=1
    )
    assert known.image_ref == "i-1"
    assert known.image_properties == {"hw_qemu_guest_agent": "yes"}


def test_a_domain_without_metadata_has_no_owner_and_a_flavor_of_its_own_sizes() -> None:
    domain = description.parse(INSTANCE.format(namespace="https://example.org/other"))
    assert metadata.read(domain).owner is None
    assert metadata.flavor_of(domain, root_bytes=3 * 2**30 + 1) == Flavor(
        name="2-512", vcpus=2, memory_mib=512, disk_gib=4
    )
