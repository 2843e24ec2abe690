# SPDX-License-Identifier: Apache-2.0
"""An agent whose hypervisor and images are played; files and journal are real."""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from common.errors import InstanceNotFound
from common.glance import Image
from common.reports import Flavor
from common.states import PowerState
from compute_agent.guest import description
from compute_agent.guest.errors import NetworkNotFound
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.places import Places
from compute_agent.restore.model import BuiltDisk, DiskWish, ProvenImage
from compute_agent.spawn import Spawns
from compute_agent.tools import Tools
from compute_agent.trial import Trials, TrialSettings
from tests.unit.compute_agent.conftest import RecordedReports
from tests.unit.compute_agent.stage import tools_of

UUID, IMAGE = str(uuid.uuid5(uuid.NAMESPACE_URL, "new")), str(uuid.uuid5(uuid.NAMESPACE_URL, "i"))
FLAVOR = Flavor(name="small", vcpus=2, memory_mib=512, disk_gib=1)


class Killed(BaseException):
    """The agent dies here."""


class PlayedGuest:
    """A domain of the played host."""

    def __init__(self, host: Host, domain: ET.Element) -> None:
        self.host, self.domain = host, domain
        self.is_on = False

    def describe(self) -> ET.Element:
        return self.domain

    def start(self) -> None:
        self.host.do("start")
        self.is_on = True

    def is_active(self) -> bool:
        return self.is_on and self.host.stays_on

    def power_state(self) -> PowerState:
        return PowerState.RUNNING if self.is_on else PowerState.SHUTDOWN

    def has_agent(self) -> bool:
        return self.host.has_agent

    def cut_power(self) -> None:
        self.host.do("cut")
        self.is_on = False

    def undefine(self) -> None:
        self.host.do("undefine")
        del self.host.guests[self.domain.findtext("uuid", "")]


class Host:
    """Hypervisor, restorer, increments and image service; fails where it is told to."""

    def __init__(self) -> None:
        self.guests: dict[str, PlayedGuest] = {}
        self.fails: dict[str, BaseException] = {}
        self.done: list[str] = []
        self.forgotten: list[str] = []
        self.written: dict[str, Any] = {}
        self.networks = {"lan"}
        self.stays_on, self.has_agent = True, False

    def do(self, what: str) -> None:
        self.done.append(what)
        if what in self.fails:
            raise self.fails[what]

    def guest(self, instance_uuid: str) -> PlayedGuest:
        self.do("find")
        if instance_uuid not in self.guests:
            raise InstanceNotFound("there is none")
        return self.guests[instance_uuid]

    def define(self, domain_xml: str) -> PlayedGuest:
        domain = description.parse(domain_xml)
        self.guests[domain.findtext("uuid", "")] = guest = PlayedGuest(self, domain)
        self.do("define")
        return guest

    def network_name(self, wanted: str) -> str:
        if wanted not in self.networks:
            raise NetworkNotFound("the host has no such network")
        return wanted

    def prove(self, _job: Any, image_id: str, directory: Path, **_: Any) -> ProvenImage:
        (directory / "image").write_bytes(b"image")
        self.do("prove")
        image = Image(
            id=image_id,
            name="i",
            status="active",
            owner="p",
            size_bytes=5,
            hash_algorithm=None,
            hash_value=None,
            disk_format="raw",
            container_format="bare",
            min_disk_gib=0,
            min_ram_mib=0,
            properties={},
        )
        return ProvenImage(
            image=image, path=directory / "image", format="raw", virtual_bytes=5, is_disk=True
        )

    def build(self, _job: Any, _proven: ProvenImage, wish: DiskWish) -> BuiltDisk:
        wish.path.write_bytes(b"disk")
        self.do("build")
        return BuiltDisk(path=wish.path, format=wish.format, size_bytes=wish.size_bytes)

    def forget_instance(self, instance_uuid: str) -> None:
        self.forgotten.append(instance_uuid)

    def update(self, image_id: str, changes: dict[str, Any]) -> None:
        self.do("update")
        self.written[image_id] = changes


class Scene:
    """One agent on the played host; `again` is what starts after it died."""

    def __init__(self, directory: Path) -> None:
        self.host, self.directory = Host(), directory
        self.places = Places(root=directory / "instances")
        self.places.make()
        self.start()

    def start(self) -> None:
        self.journal = Journal(self.directory / "journal.sqlite")
        self.tools: Tools = tools_of(self.host, self.journal, self.directory)
        self.spawns = Spawns(self.tools, self.places, lambda: "qemu")
        settings = TrialSettings(memory_mib=64, timeout_s=0.3, marker=re.compile("ready"))
        self.trials = Trials(self.tools, self.places, lambda: "qemu", settings)

    def again(self) -> None:
        self.journal.close()
        self.host.fails.clear()
        self.start()

    def job(self, request: Any) -> Job:
        self.journal.accept(request, {})
        entry = self.journal.find(request.job_id)
        assert entry is not None
        return Job(entry, "host", RecordedReports())

    def left(self) -> list[str]:
        return [*self.host.guests, *(path.name for path in self.places.root.iterdir())]
