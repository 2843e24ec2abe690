# SPDX-License-Identifier: Apache-2.0
"""An instance is only gone if libvirt says so, and a tenant hears no addresses."""

from __future__ import annotations

import logging
import socket
import tempfile
import threading
from types import SimpleNamespace
from typing import Any, cast

import libvirt
import pytest

from common.errors import InstanceNotFound, StillframeError
from compute_agent.guest import connection
from compute_agent.guest.connection import Hypervisor
from compute_agent.guest.errors import (
    HypervisorError,
    HypervisorUnavailable,
    NetworkInactive,
    NetworkNotFound,
)

URI = "qemu+unix:///system?socket=/run/secret/libvirt-sock"
UUID = "5b7a1ad4-0000-4000-8000-000000000000"


def failure(code: int, domain: int = libvirt.VIR_FROM_QEMU) -> libvirt.libvirtError:
    error = libvirt.libvirtError("as libvirt says")
    error.err = (code, domain, "words of /run/secret", 2, "", None, None, -1, -1)
    return error


class Connection:
    """A connection that lives, and on which everything fails."""

    def __init__(self, error: libvirt.libvirtError) -> None:
        self.error = error

    def isAlive(self) -> bool:
        return True

    def __getattr__(self, _name: str) -> Any:
        def fails(*_: Any) -> None:
            raise self.error

        return fails


@pytest.fixture
def hypervisor() -> Hypervisor:
    return Hypervisor(URI, keepalive_interval_s=1, keepalive_count=1)


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (failure(libvirt.VIR_ERR_NO_DOMAIN), InstanceNotFound),
        (failure(libvirt.VIR_ERR_INTERNAL_ERROR), HypervisorError),
        (failure(libvirt.VIR_ERR_OPERATION_FAILED), HypervisorError),
        (failure(libvirt.VIR_ERR_NO_MEMORY), HypervisorError),
        (failure(libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC), HypervisorUnavailable),
        (failure(libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_FROM_REMOTE), HypervisorUnavailable),
    ],
)
def test_an_instance_is_gone_only_if_libvirt_knows_none_of_its_id(
    hypervisor: Hypervisor, error: libvirt.libvirtError, becomes: type[StillframeError]
) -> None:
    hypervisor._connection = Connection(error)
    with pytest.raises(StillframeError) as raised:
        hypervisor.guest(UUID)
    assert type(raised.value) is becomes
    assert "/run" not in raised.value.message


class Network:
    """A network, started or not."""

    def __init__(self, *, is_active: bool) -> None:
        self.is_active = is_active

    def name(self) -> str:
        return "lan"

    def UUIDString(self) -> str:
        return UUID

    def isActive(self) -> bool:
        return self.is_active


class Networked(Connection):
    """A connection that has one network."""

    def __init__(self, network: Network) -> None:
        super().__init__(failure(libvirt.VIR_ERR_NO_NETWORK))
        self.network = network

    def networkLookupByUUIDString(self, wanted: str) -> Network:
        if wanted != UUID:
            raise self.error
        return self.network


def test_a_network_is_found_by_its_id_too_and_one_that_cannot_be_used_is_told_in_words(
    hypervisor: Hypervisor,
) -> None:
    hypervisor._connection = Networked(network := Network(is_active=True))
    assert hypervisor.network_name(UUID) == "lan"
    with pytest.raises(NetworkNotFound, match="has no network wan"):
        hypervisor.network_name("wan")
    network.is_active = False
    with pytest.raises(NetworkInactive, match="network lan is not started"):
        hypervisor.network_name(UUID)


@pytest.mark.parametrize("opens", [False, True], ids=["not at all", "and breaks at once"])
def test_a_libvirt_that_cannot_be_reached_is_named_in_the_log_alone(
    hypervisor: Hypervisor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    opens: bool,
) -> None:
    broken = Connection(failure(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC))

    def open_(_uri: str) -> Connection:
        if not opens:
            raise broken.error
        return broken

    monkeypatch.setattr(libvirt, "open", open_)
    with caplog.at_level(logging.ERROR), pytest.raises(HypervisorUnavailable) as raised:
        hypervisor.guest(UUID)
    assert URI in caplog.text
    assert "/" not in raised.value.message


def test_a_libvirt_that_takes_the_connection_and_does_not_answer_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "_OPEN_TIMEOUT_S", 0.2)
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as deaf:
        path = f"{directory}/sock"
        deaf.bind(path)
        deaf.listen()
        uri = f"qemu+unix:///system?socket={path}"
        hypervisor = Hypervisor(uri, keepalive_interval_s=1, keepalive_count=1)
        before = threading.active_count()
        for _ in range(2):
            with pytest.raises(HypervisorUnavailable):
                hypervisor.connection()
        assert threading.active_count() == before + 1, "the first is still waited for"
    assert "does not answer within" in caplog.text


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (failure(libvirt.VIR_ERR_NO_NETWORK), NetworkNotFound),
        (failure(libvirt.VIR_ERR_INVALID_ARG), NetworkNotFound),
        (failure(libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC), HypervisorUnavailable),
    ],
)
def test_a_network_is_only_missing_if_libvirt_says_so(
    hypervisor: Hypervisor,
    monkeypatch: pytest.MonkeyPatch,
    error: libvirt.libvirtError,
    becomes: type[StillframeError],
) -> None:
    monkeypatch.setattr(hypervisor, "_connection", Connection(error))
    with pytest.raises(becomes):
        hypervisor.network_name("lan")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (failure(libvirt.VIR_ERR_NO_SUPPORT), {}),
        (failure(libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC), None),
    ],
)
def test_a_host_says_that_it_has_no_network_only_if_libvirt_says_so(
    error: libvirt.libvirtError, told: dict[str, str] | None
) -> None:
    def refuse() -> None:
        raise error

    assert connection._networks(cast(Any, SimpleNamespace(listAllNetworks=refuse))) == told
