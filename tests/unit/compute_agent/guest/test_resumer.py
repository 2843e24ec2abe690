# SPDX-License-Identifier: Apache-2.0
"""A rescue resumes a guest, and gives up when the agent speaks again: then it is another pause."""

from __future__ import annotations

import json
from collections.abc import Iterator

import libvirt
import pytest

from compute_agent.guest.resumer import Resumer

#: libvirt's own mock driver; every connection of this process sees one domain, `test`.
URI = "test:///default"


@pytest.fixture
def domain() -> Iterator[libvirt.virDomain]:
    connection = libvirt.open(URI)
    domain = connection.lookupByName("test")
    domain.suspend()
    yield domain
    connection.close()


def test_a_rescue_resumes_the_guest(domain: libvirt.virDomain) -> None:
    resumer = Resumer(URI)
    resumer._take(line({"arm": domain.UUIDString(), "budget_s": 0.0}))
    resumer._rescue(domain.UUIDString(), resumer._turns[domain.UUIDString()])
    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING


def test_a_pause_that_is_not_the_agent_s_is_left(domain: libvirt.virDomain) -> None:
    """Of a guest that is, or is to be, frozen only the freeze is undone."""
    uuid = domain.UUIDString()
    resumer = Resumer(URI)
    for before in ({"arm": uuid, "budget_s": 0.0, "resumes": False}, {"resumed": uuid}):
        resumer._take(line({"arm": uuid, "budget_s": 0.0}))
        resumer._take(line(before))
        resumer._rescue(uuid, resumer._turns[uuid])
        assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED


@pytest.mark.parametrize("word", ["arm", "disarm"])
def test_a_rescue_does_not_resume_a_pause_that_came_after_it_began(
    domain: libvirt.virDomain, word: str
) -> None:
    resumer = Resumer(URI)
    resumer._take(line({"arm": domain.UUIDString(), "budget_s": 0.0}))
    turn = resumer._turns[domain.UUIDString()]
    more = {"budget_s": 60.0} if word == "arm" else {}
    resumer._take(line({word: domain.UUIDString(), **more}))
    resumer._rescue(domain.UUIDString(), turn)
    assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED


def line(message: dict[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\n"
