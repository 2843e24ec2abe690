# SPDX-License-Identifier: Apache-2.0
"""A handle on one domain that outlives the connection it was found on.

Base of everything that is done to a guest (`backup_jobs`, `overlays`,
`domain`); made by `connection`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import libvirt

from compute_agent.guest import description
from compute_agent.guest.errors import translated


class Handle:
    """One domain of this host. `find` looks it up again after libvirt was restarted."""

    def __init__(self, domain: libvirt.virDomain, find: Callable[[str], libvirt.virDomain]) -> None:
        self._found = domain
        self._find = find
        self.uuid: str = domain.UUIDString()
        self.domain_name: str = domain.name()

    @property
    def _domain(self) -> libvirt.virDomain:
        """The domain on a connection that lives: a snapshot may outlast the one it began on."""
        if not self._found.connect().isAlive():
            self._found = self._find(self.uuid)
        return self._found

    def is_active(self) -> bool:
        """Tell whether a QEMU process runs the guest (running, paused or suspended)."""
        with translated("asking for its state"):
            return bool(self._domain.isActive())

    def describe(self) -> ET.Element:
        """Return the `<domain>` element as it stands (the live one of an active guest)."""
        with translated("reading its definition"):
            return description.parse(self._domain.XMLDesc())
