# SPDX-License-Identifier: Apache-2.0
"""The connection to libvirt and its event loop.

One thread runs libvirt's event loop for the process. A connection that is lost
(the daemon restarts) is opened again at the next use; `on_change` tells the
announcer of every lifecycle event and of each reopening.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import libvirt
import libvirt_qemu
from oslo_utils import netutils

from common.errors import InstanceNotFound
from common.reports import Hypervisor as HypervisorInfo
from compute_agent.guest import description
from compute_agent.guest.domain import Guest
from compute_agent.guest.errors import (
    HypervisorUnavailable,
    NetworkInactive,
    NetworkNotFound,
    translated,
)
from compute_agent.guest.stamps import EVENTS, Recorder

LOG = logging.getLogger(__name__)

_LOOP_WAKE_MS = 500
_NO_SUCH_NETWORK = (libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_INVALID_ARG)
#: libvirt itself waits for ever for a daemon that takes the connection and does not answer.
_OPEN_TIMEOUT_S = 30.0
_KIB_PER_MIB = 1024


class Hypervisor:
    """This host's libvirt. Thread-safe; `start` before anything else."""

    name = "libvirt event loop"

    def __init__(
        self,
        uri: str,
        *,
        keepalive_interval_s: float,
        keepalive_count: int,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._uri = uri
        self._keepalive = (max(1, round(keepalive_interval_s)), keepalive_count)
        self.on_change = on_change
        #: Told the UUID of a domain that is deleted, or stopped for want of space.
        self.on_undefined: Callable[[str], None] = lambda _: None
        self.on_io_error: Callable[[str], None] = lambda _: None
        self.stamps = Recorder()
        self._lock = threading.Lock()
        self._connection: libvirt.virConnect | None = None
        self._opening: Future[libvirt.virConnect] | None = None
        self._stopping = threading.Event()
        self._loop = threading.Thread(target=self._run_loop, name="libvirt-events", daemon=True)

    def start(self) -> None:
        """Register the event loop, run it and open the connection.

        Raises HypervisorUnavailable if libvirt cannot be reached.
        """
        libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised, not printed
        libvirt.virEventRegisterDefaultImpl()
        # Wakes the loop from time to time, so that it sees `_stopping`.
        libvirt.virEventAddTimeout(_LOOP_WAKE_MS, lambda *_: None, None)
        self._loop.start()
        self.connection()

    def stop(self, deadline: float) -> None:
        """Close the connection and end the loop."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._stopping.set()
        self._loop.join(max(0.0, deadline - time.monotonic()))

    def alive(self) -> bool:
        """Tell whether the event loop still runs (for the watchdog)."""
        return self._loop.is_alive()

    def connection(self) -> libvirt.virConnect:
        """Return an open connection; raise HypervisorUnavailable if there is none to be had."""
        with self._lock:
            if self._connection is None or not self._is_usable(self._connection):
                self._connection = self._open()
            return self._connection

    def guests(self) -> list[Guest]:
        """Return every domain of this host, running or not."""
        with translated("listing its instances"):
            domains = self.connection().listAllDomains()
            return [Guest(domain, self._find, self.stamps) for domain in domains]

    def guest(self, instance_uuid: str) -> Guest:
        """Return one domain; raise InstanceNotFound if this host has none of that id."""
        return Guest(self._find(instance_uuid), self._find, self.stamps)

    def define(self, domain_xml: str) -> Guest:
        """Have libvirt know a domain; it is off."""
        with translated("defining it"):
            domain = self.connection().defineXML(domain_xml)
        return Guest(domain, self._find, self.stamps)

    def network_name(self, wanted: str) -> str:
        """Return the name of the network of this name or id, which guests can be on.

        Raises NetworkNotFound or NetworkInactive.
        """
        connection = self.connection()
        for look in (connection.networkLookupByName, connection.networkLookupByUUIDString):
            try:
                network = look(wanted)
                name, is_active = str(network.name()), network.isActive()
            except libvirt.libvirtError as error:
                # A name that is no id cannot even be asked for as one.
                if error.get_error_code() not in _NO_SUCH_NETWORK:
                    with translated("looking for a network"):
                        raise
                continue
            if not is_active:
                raise NetworkInactive(f"network {name} is not started on the instance's host")
            return name
        raise NetworkNotFound(f"the instance's host has no network {wanted}")

    def disk_paths(self) -> frozenset[str]:
        """Return the files and devices that the disks of all guests are on."""
        found: set[str] = set()
        for guest in self.guests():
            try:
                disks = description.disks(guest.describe())
            except InstanceNotFound:
                continue  # it went while we looked
            found.update(disk.path for disk in disks if disk.path)
        return frozenset(found)

    def info(self) -> HypervisorInfo:
        """Return what the host is."""
        with translated("describing its host"):
            connection = self.connection()
            _, memory_mib, cpus, *_ = connection.getInfo()
            return HypervisorInfo(
                type=connection.getType(),
                version=connection.getVersion(),
                hostname=connection.getHostname(),
                vcpus=int(cpus),
                memory_mib=int(memory_mib),
                host_ip=netutils.get_my_ipv4(),
                networks=_networks(connection),
            )

    def _find(self, instance_uuid: str) -> libvirt.virDomain:
        connection = self.connection()
        try:
            return connection.lookupByUUIDString(instance_uuid)
        except libvirt.libvirtError as error:
            # Nothing else proves that it is gone: what it has on this host is given up then.
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise InstanceNotFound(
                    f"instance {instance_uuid} is not on the host that was asked"
                ) from error
            with translated("looking for it"):
                raise

    def _open(self) -> libvirt.virConnect:
        try:
            connection = self._open_in_time()
            self._listen(connection)
        except (libvirt.libvirtError, TimeoutError) as error:
            # The address is the operator's; the sentence may reach a tenant.
            LOG.error(
                "libvirt at %s cannot be used; is its daemon running, and may this user use it? %s",
                self._uri,
                str(error) or f"It does not answer within {_OPEN_TIMEOUT_S:.0f} s",
            )
            raise HypervisorUnavailable(
                "the hypervisor's service cannot be reached; the log of its host says why"
            ) from error
        LOG.info("Connected to libvirt at %s", self._uri)
        return connection

    def _open_in_time(self) -> libvirt.virConnect:
        """Open a connection in a thread; one that hangs is waited for again the next time."""
        opening = self._opening
        if opening is None:
            opening = self._opening = Future()
            thread = threading.Thread(
                target=_open_into, args=(opening, self._uri), name="libvirt-open", daemon=True
            )
            thread.start()
        try:
            return opening.result(_OPEN_TIMEOUT_S)
        finally:
            if opening.done():
                self._opening = None

    def _listen(self, connection: libvirt.virConnect) -> None:
        connection.setKeepAlive(*self._keepalive)
        connection.registerCloseCallback(self._on_close, None)
        connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None
        )
        connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._on_io_error, None
        )
        # A libvirt without a driver for networks has none that could change.
        with contextlib.suppress(libvirt.libvirtError):
            connection.networkEventRegisterAny(
                None, libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE, self._on_network, None
            )
        for event in EVENTS:
            libvirt_qemu.qemuMonitorEventRegister(connection, None, event, self._on_qemu, None)

    def _is_usable(self, connection: libvirt.virConnect) -> bool:
        try:
            return bool(connection.isAlive())
        except libvirt.libvirtError:
            return False

    def _on_close(self, connection: libvirt.virConnect, reason: int, _opaque: Any) -> None:
        LOG.warning("libvirt closed the connection (reason %d); it is opened again", reason)
        # Called from the event loop: forget it only; whoever needs libvirt next reopens it.
        with self._lock:
            if self._connection is connection:
                self._connection = None
        self.on_change()

    def _on_lifecycle(
        self, _connection: Any, domain: libvirt.virDomain, event: int, _detail: int, _opaque: Any
    ) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
            self.stamps.forget(domain.UUIDString())
            self.on_undefined(domain.UUIDString())
        self.on_change()

    def _on_network(self, *_about: Any) -> None:
        self.on_change()

    def _on_io_error(
        self,
        _connection: Any,
        domain: libvirt.virDomain,
        path: str,
        alias: str,
        action: int,
        reason: str,
        _opaque: Any,
    ) -> None:
        LOG.warning("[instance: %s] I/O error on %s: %s", domain.UUIDString(), alias, reason)
        stopped = action == libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE
        if stopped and reason == "enospc":
            self.on_io_error(domain.UUIDString())

    def _on_qemu(
        self,
        _connection: Any,
        domain: libvirt.virDomain,
        event: str,
        seconds: int,
        micros: int,
        details: str | None,
        _opaque: Any,
    ) -> None:
        self.stamps.record(domain.UUIDString(), event, seconds + micros / 1e6, details)

    def _run_loop(self) -> None:
        while not self._stopping.is_set():
            libvirt.virEventRunDefaultImpl()


def _networks(connection: libvirt.virConnect) -> dict[str, str] | None:
    """Return ids by name; None: libvirt does not say at the moment."""
    try:
        return {net.name(): net.UUIDString() for net in connection.listAllNetworks()}
    except libvirt.libvirtError as error:
        has_none = error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT
        LOG.debug("libvirt lists no networks: %s", error)
        return {} if has_none else None


def _open_into(opening: Future[libvirt.virConnect], uri: str) -> None:
    try:
        opening.set_result(libvirt.open(uri))
    except BaseException as error:  # it belongs to the one who waits, whatever it is
        opening.set_exception(error)
