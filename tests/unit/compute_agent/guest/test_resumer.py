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


@pytest.mark.parametrize("word", ["arm", "disarm"])
def test_a_rescue_does_not_resume_a_pause_that_came_after_it_began(
    domain: libvirt.virDomain, word: str
) -> None:
    resumer = Resumer(URI)
    resumer._take(line({"arm": domain.UUIDString(), "budget_s": 0.0}))
    turn = resumer._turns[domain.UUIDString()]
    resumer._take(line({word: domain.UUIDString(), "budget_s": 60.0}))
    resumer._rescue(domain.UUIDString(), turn)
    assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED


def line(message: dict[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\n"
