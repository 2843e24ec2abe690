# SPDX-License-Identifier: Apache-2.0
"""What a rebuild writes into a definition, and takes back, with libvirt's own test driver."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest

from compute_agent.guest import metadata
from compute_agent.guest.definition import Definition

NOVA = metadata.NOVA_NAMESPACES[0]
ELEMENT = """
<metadata>
<x:instance xmlns:x="{namespace}">
  <x:name>web-1</x:name>
  <x:owner><x:user uuid="u-1">ann</x:user><x:project uuid="p-1">shop</x:project></x:owner>
  <x:image><x:imageProperties><x:property name="hw_old">yes</x:property>
  </x:imageProperties></x:image>
  <x:root type="image" uuid="i-1"/>
</x:instance></metadata>
"""
DOMAIN = """
<domain type='test'><name>{name}</name><uuid>{name}</uuid><memory>8192</memory>
<os><type>hvm</type></os>{metadata}</domain>
"""


@pytest.fixture
def connection() -> Iterator[libvirt.virConnect]:
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def defined(connection: libvirt.virConnect, element: str) -> Definition:
    name = str(uuid.uuid4())
    domain = connection.defineXML(DOMAIN.format(name=name, metadata=element))
    return Definition(domain, connection.lookupByUUIDString)


@pytest.mark.parametrize("namespace", [metadata.OUR_NAMESPACE, NOVA])
@pytest.mark.parametrize("runs", [False, True])
def test_another_image_is_written_where_the_old_one_stood_and_taken_back(
    connection: libvirt.virConnect, namespace: str, runs: bool
) -> None:
    guest = defined(connection, ELEMENT.format(namespace=namespace))
    if runs:
        guest._domain.create()
    before = metadata.read(guest.definition())
    change = metadata.with_image(guest.definition(), "i-2", {"hw_new": "no"})
    guest.write_metadata(change)
    after = metadata.read(guest.definition())
    assert (after.image_ref, after.image_properties) == ("i-2", {"hw_new": "no"})
    assert (after.name, after.owner) == (before.name, before.owner)
    assert metadata.read(guest.describe()).image_ref == "i-2"
    for _ in range(2):
        guest.write_metadata(change, back=True)
        assert metadata.read(guest.definition()) == before


def test_a_property_that_xml_cannot_say_does_not_keep_libvirt_from_the_others(
    connection: libvirt.virConnect,
) -> None:
    """It is written while the guest is off: too late to find out."""
    guest = defined(connection, "")
    odd = {"hw_new\x01": "a\x00b", "hw_half": "\ud800", "os_type": "linux <&>"}
    guest.write_metadata(metadata.with_image(guest.definition(), "i-2", odd))
    assert metadata.read(guest.definition()).image_properties == {
        "hw_new\ufffd": "a\ufffdb",
        "hw_half": "\ufffd",
        "os_type": "linux <&>",
    }


def test_a_domain_without_metadata_gets_some_and_loses_it_again(
    connection: libvirt.virConnect,
) -> None:
    guest = defined(connection, "")
    change = metadata.with_image(guest.definition(), "i-2", {})
    guest.write_metadata(change)
    assert metadata.read(guest.definition()).image_ref == "i-2"
    for _ in range(2):
        guest.write_metadata(change, back=True)
        assert metadata.read(guest.definition()).image_ref is None


def test_what_libvirt_keeps_and_has_saved_is_told(connection: libvirt.virConnect) -> None:
    guest = defined(connection, "")
    assert guest.is_persistent()
    assert not guest.has_saved_memory()
    guest._domain.create()
    guest._domain.managedSave()
    assert guest.has_saved_memory()
    xml = DOMAIN.format(name=str(uuid.uuid4()), metadata="")
    passing = Definition(connection.createXML(xml), connection.lookupByUUIDString)
    assert not passing.is_persistent()


class Answers:
    """A domain whose agent answers, or does not, and whose interfaces have addresses."""

    def __init__(self, *, agent: bool) -> None:
        self.agent = agent
        self.timeouts: list[int] = []
        self.asked: list[tuple[int, list[int]]] = []
        self.more = 0

    def connect(self) -> Answers:
        return self

    def isAlive(self) -> bool:
        return True

    def UUIDString(self) -> str:
        return "guest"

    def name(self) -> str:
        return "guest"

    def agentSetResponseTimeout(self, seconds: int) -> None:
        self.timeouts.append(seconds)

    def getTime(self) -> dict[str, int]:
        if not self.agent:
            raise libvirt.libvirtError("no agent")
        return {"seconds": 1}

    def interfaceAddresses(self, source: int) -> dict[str, Any]:
        if source == libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP:
            raise libvirt.libvirtError("not here")
        self.asked.append((source, self.timeouts[-1:]))
        found = ["192.0.2.7", "127.0.0.1", "fe80::1"]
        found += [f"198.51.100.{number}" for number in range(self.more)]
        return {"vnet0": {"addrs": [{"addr": one} for one in found]}, "vnet1": {"addrs": None}}


@pytest.mark.parametrize("answers", [True, False])
def test_an_agent_is_asked_in_bounded_time_and_its_bound_is_put_back(answers: bool) -> None:
    domain = Answers(agent=answers)
    guest = Definition(domain, lambda _: domain)
    assert guest.agent_answers() is answers
    assert domain.timeouts == [2, libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK]


def test_only_addresses_that_can_be_reached_are_told_each_once() -> None:
    domain = Answers(agent=True)
    assert Definition(domain, lambda _: domain).addresses() == ("192.0.2.7",)


def test_an_agent_that_keeps_silent_or_talks_too_much_holds_nobody_up() -> None:
    domain = Answers(agent=True)
    domain.more = 1000
    assert len(Definition(domain, lambda _: domain).addresses()) == 8
    agent = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
    assert dict(domain.asked)[agent] == [2]
    assert domain.timeouts[-1] == libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK
