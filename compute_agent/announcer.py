# SPDX-License-Identifier: Apache-2.0
"""Announces this host and its instances to the API: the agent's heartbeat.

The complete list of instances goes out at start, soon after any libvirt event
and every few heartbeats; the heartbeats between say only that the agent lives.
The API answers each: it takes the reports of one agent for each host name, and
another that was given the same name must end. One that nobody answers in time is
dropped by the broker, so that no old one tells of life.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib import metadata as distribution

from common import clock, context
from common.errors import ConfigurationError, StillframeError
from common.reports import HostReport, InstanceRecord, ReportTaken
from common.reports import Hypervisor as HostInfo
from common.rpc import Client
from compute_agent.guest import description, metadata
from compute_agent.guest.connection import Hypervisor
from compute_agent.guest.domain import Guest
from compute_agent.guest.metadata import Owner

LOG = logging.getLogger(__name__)

#: Events come in bursts (a boot has four); one report answers them all.
_DEBOUNCE_S = 0.3


class Announcer:
    """Sends HostReports until stopped."""

    name = "announcer"

    def __init__(
        self,
        client: Client,
        hypervisor: Hypervisor,
        *,
        host: str,
        agent_id: str,
        interval_s: float,
        full_every: int,
        default_owner: Owner | None,
        open_jobs: Callable[[], tuple[str, ...]],
    ) -> None:
        self._client = client
        self._hypervisor = hypervisor
        self._host = host
        self._agent_id = agent_id
        self.interval_s = interval_s
        self._full_every = full_every
        self._default_owner = default_owner
        self._open_jobs = open_jobs
        #: Says how much room there is for the disks of new instances.
        self.free_disk_gib: Callable[[], int | None] = lambda: None
        #: Told when the API refuses this agent after all.
        self.on_refused: Callable[[ConfigurationError], None] = lambda _: None
        self._started_at = clock.epoch_s()
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._unowned: set[str] = set()
        self._reachable = True
        #: When (monotonic) the API was last told that this agent lives.
        self._told_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def claim_host(self) -> None:
        """Ask the API, before anything is done, whether this agent may have its host name.

        Raises ConfigurationError if not; an API that does not answer is asked again later.
        """
        try:
            self._send(self._report(complete=False))
        except ConfigurationError:
            raise
        except StillframeError as error:
            LOG.warning("Nobody says yet whether this host's name is free: %s", error)

    def start(self) -> None:
        """Begin to announce."""
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Announce no more; the API notices by the silence."""
        self._stopping.set()
        self._changed.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def alive(self) -> bool:
        """Tell whether the thread runs (for the watchdog)."""
        return self._thread.is_alive()

    def changed(self) -> None:
        """Something happened to a domain: announce the complete list soon."""
        self._changed.set()

    def _run(self) -> None:
        beats_to_full = 0
        while not self._stopping.is_set():
            beats_to_full = self._full_every if beats_to_full <= 0 else beats_to_full
            delivered = self._try_to_announce(complete=beats_to_full == self._full_every)
            # An announcement that was lost is repeated whole.
            beats_to_full = beats_to_full - 1 if delivered else 0
            if self._changed.wait(self.interval_s):
                self._stopping.wait(_DEBOUNCE_S)
                self._changed.clear()
                beats_to_full = 0

    def _try_to_announce(self, *, complete: bool) -> bool:
        try:
            return self._announce(complete=complete)
        except ConfigurationError as refusal:
            self.on_refused(refusal)
            return False
        except Exception:
            # One strange domain must not silence the host for ever.
            LOG.exception("This host could not be announced")
            return False

    def _announce(self, *, complete: bool) -> bool:
        try:
            report = self._report(complete=complete)
            self._send(report)
        except ConfigurationError:
            raise
        except StillframeError as error:
            if self._reachable:
                LOG.warning("This host cannot be announced, trying on: %s", error)
            self._reachable = False
            return False
        if complete and report.instances is not None and not self._reachable:
            LOG.info("This host is announced again, with %d instances", len(report.instances))
        self._reachable = True
        return True

    def _report(self, *, complete: bool) -> HostReport:
        report = HostReport(
            host=self._host,
            agent_id=self._agent_id,
            release=distribution.version("stillframe"),
            started_at=self._started_at,
            at=clock.epoch_s(),
            expires_s=self._client.timeout_s,
        )
        if not complete:
            return report
        began = time.monotonic()
        seen = dataclasses.replace(
            report,
            hypervisor=self._host_info(),
            instances=self._instances(),
            open_jobs=self._open_jobs(),
        )
        # The API takes it for no older than this, whatever the host's clock says, and a look at
        # many busy guests takes seconds. A list that counts as newer than it is buries what came
        # meanwhile.
        looked_s = time.monotonic() - began
        return dataclasses.replace(seen, expires_s=self._client.timeout_s + looked_s)

    def _host_info(self) -> HostInfo:
        return dataclasses.replace(self._hypervisor.info(), free_disk_gib=self.free_disk_gib())

    def _send(self, report: HostReport) -> None:
        self._told_at = time.monotonic()
        answer = self._client.call(context.new(), "host_report", report=report.to_wire())
        # An older API answers nothing, and takes everything.
        if answer and not ReportTaken.from_wire(answer).taken:
            raise ConfigurationError(f"the API refuses this agent: {answer['reason']}")

    def _instances(self) -> tuple[InstanceRecord, ...]:
        records = []
        for guest in self._hypervisor.guests():
            self._beat_if_due()
            try:
                record = self._record(guest)
            except StillframeError as error:
                # It may just have vanished; the event of that brings the next report.
                LOG.info("Domain %s is not announced: %s", guest.domain_name, error)
                continue
            if record is not None:
                records.append(record)
        return tuple(records)

    def _beat_if_due(self) -> None:
        """Say that this agent lives, although the list takes long.

        libvirt keeps a question about a domain that starts or ends waiting until it has; a
        burst of those must not make the host look dead.
        """
        if time.monotonic() - self._told_at >= self.interval_s:
            self._send(self._report(complete=False))

    def _record(self, guest: Guest) -> InstanceRecord | None:
        domain = guest.describe()
        known = metadata.read(domain)
        if known.is_throw_away:
            return None
        owner = known.owner or self._default_owner
        if owner is None:
            self._say_unowned(guest)
            return None
        return InstanceRecord(
            uuid=guest.uuid,
            name=known.name or guest.domain_name,
            domain_name=guest.domain_name,
            project_id=owner.project_id,
            project_name=owner.project_name,
            user_id=owner.user_id,
            user_name=owner.user_name,
            flavor=known.flavor or metadata.flavor_of(domain, self._root_bytes(guest, domain)),
            image_ref=known.image_ref,
            power_state=guest.power_state(),
            image_properties=known.image_properties,
            root_device_name=_root_device_name(domain),
        )

    def _root_bytes(self, guest: Guest, domain: ET.Element) -> int:
        try:
            return guest.capacity_bytes(description.root_disk(domain).target)
        except StillframeError:
            return 0  # no disk to measure: a flavor without one

    def _say_unowned(self, guest: Guest) -> None:
        if guest.uuid not in self._unowned:
            self._unowned.add(guest.uuid)
            LOG.warning(
                "Domain %s names no owner in its metadata and [agent] default_project_id is "
                "unset: it is not announced",
                guest.domain_name,
            )


def _root_device_name(domain: ET.Element) -> str | None:
    try:
        return f"/dev/{description.root_disk(domain).target}"
    except StillframeError:
        return None
