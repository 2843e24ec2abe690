# SPDX-License-Identifier: Apache-2.0
"""A guest's button is pressed again, and one that goes off meanwhile is off."""

from __future__ import annotations

import threading
from typing import Any

import libvirt
import pytest

from compute_agent.guest import power
from compute_agent.guest.errors import HypervisorError
from compute_agent.guest.power import Power

LONG_S = 10.0


class Domain:
    """libvirt's domain, as far as power is concerned; also its own connection."""

    def __init__(self, *, obeys_press: int | None = None) -> None:
        self.active = True
        self.presses = 0
        self.obeys_press = obeys_press
        #: What happens to the guest while libvirt is being called.
        self.meanwhile: bool | None = None
        self.refuses = False

    def connect(self) -> Domain:
        return self

    def isAlive(self) -> bool:
        return True

    def UUIDString(self) -> str:
        return "guest"

    def name(self) -> str:
        return "guest"

    def isActive(self) -> int:
        return int(self.active)

    def _call(self, active: bool) -> None:
        if self.meanwhile is not None:
            self.active = self.meanwhile
        if self.refuses:
            raise libvirt.libvirtError("the domain is not in the state for that")
        self.active = active

    def shutdownFlags(self, _flags: int) -> None:
        self.presses += 1
        self._call(active=self.presses != self.obeys_press)

    def destroy(self) -> None:
        self._call(active=False)

    def create(self) -> None:
        self._call(active=True)


def guest(domain: Domain) -> Power:
    anything: Any = domain
    return Power(anything, lambda _: anything)


def shut_down(domain: Domain, timeout_s: float = LONG_S) -> bool:
    return guest(domain).shut_down(timeout_s, threading.Event())


def test_a_guest_that_missed_its_button_while_it_booted_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(power, "_PRESS_AGAIN_S", 0.0)
    domain = Domain(obeys_press=2)
    assert shut_down(domain)
    assert domain.presses == 2


def test_a_guest_that_may_take_no_time_is_not_asked() -> None:
    domain = Domain()
    assert not shut_down(domain, 0)
    assert domain.presses == 0


def test_a_guest_that_goes_off_while_its_button_is_pressed_is_off() -> None:
    domain = Domain()
    domain.meanwhile, domain.refuses = False, True
    assert shut_down(domain)


def test_a_button_that_cannot_be_pressed_is_as_one_that_is_not_obeyed() -> None:
    domain = Domain()
    domain.refuses = True
    assert not shut_down(domain, 0.05)


def test_a_guest_that_goes_off_while_its_power_is_cut_is_off() -> None:
    domain = Domain()
    domain.meanwhile, domain.refuses = False, True
    guest(domain).cut_power()
    domain.active, domain.meanwhile = True, None
    with pytest.raises(HypervisorError):
        guest(domain).cut_power()


def test_a_guest_that_comes_on_while_it_is_started_is_on() -> None:
    domain = Domain()
    domain.active, domain.meanwhile, domain.refuses = False, True, True
    guest(domain).start()
    domain.active, domain.meanwhile = False, None
    with pytest.raises(HypervisorError):
        guest(domain).start()
