# SPDX-License-Identifier: Apache-2.0
"""A network of the private libvirtd: a bridge that leads nowhere but to this host.

libvirt makes it in the host's own network namespace, where the agent can reach the guests on
it. It touches nothing else there: no route out, no firewall rule (`forward mode='open'`), no
name or address service, and its addresses are those that RFC 2544 keeps for tests.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from tools.stack.libvirtd import Libvirtd

_XML = """\
<network>
  <name>{name}</name>
  <forward mode='open'/>
  <bridge name='{bridge}' stp='off' delay='0'/>
  <dns enable='no'/>
  <ip address='{address}' netmask='255.255.255.0'/>
</network>
"""


class Network:
    """One network; apart from those of other directories and names by its bridge and addresses."""

    def __init__(self, libvirtd: Libvirtd, directory: Path, name: str) -> None:
        self.name = name
        self._libvirtd = libvirtd
        self._file = directory / f"{name}.xml"
        digest = hashlib.sha256(str(self._file).encode()).digest()
        self._prefix = (198, 18 + digest[0] % 2, digest[1])
        self.bridge = f"sf-{digest.hex()[:8]}"

    def address(self, number: int) -> str:
        """Return the address of guest `number` (from 2 on); 1 is the host's."""
        return ".".join(map(str, (*self._prefix, number)))

    def mac(self, number: int) -> str:
        """Return what a card must be called for the test guest to take that address."""
        octets = (0x52, 0x54, 0x00, *self._prefix[1:], number)
        return ":".join(f"{octet:02x}" for octet in octets)

    def define(self) -> None:
        """Have libvirt know it; it is not there yet."""
        self._file.write_text(
            _XML.format(name=self.name, bridge=self.bridge, address=self.address(1))
        )
        self._libvirtd.virsh("net-define", str(self._file))

    def start(self) -> None:
        """Make the bridge."""
        self._libvirtd.virsh("net-start", self.name)

    def remove(self) -> None:
        """Leave nothing of it, neither here nor on the host."""
        self._libvirtd.virsh("net-destroy", self.name, check=False)
        self._libvirtd.virsh("net-undefine", self.name)

    @contextlib.contextmanager
    def started(self) -> Iterator[Network]:
        """Have it for a while."""
        self.define()
        try:
            self.start()
            yield self
        finally:
            self.remove()
