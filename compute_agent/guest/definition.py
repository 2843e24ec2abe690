# SPDX-License-Identifier: Apache-2.0
"""What a rebuild asks of a domain beside its power: is it kept, what it is made of, is it up."""

from __future__ import annotations

import contextlib
import logging
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import libvirt

from compute_agent.guest import description
from compute_agent.guest.errors import translated
from compute_agent.guest.handle import Handle
from compute_agent.guest.metadata import MetadataChange

LOG = logging.getLogger(__name__)

_AGENT_TIMEOUT_S = 2
#: Where libvirt may learn a guest's addresses.
_ADDRESS_SOURCES = (
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
)
_MOST_ADDRESSES = 8
_LOOPBACK = ("127.", "::1", "fe80:")


class Definition(Handle):
    """A domain's definition, and signs of life of what it runs."""

    def is_persistent(self) -> bool:
        """Tell whether libvirt keeps the domain when it is switched off."""
        with translated("asking whether it is kept"):
            return bool(self._domain.isPersistent())

    def has_saved_memory(self) -> bool:
        """Tell whether the domain is suspended to disk: its memory goes with its disk as it is."""
        with translated("asking whether it is suspended to disk"):
            return bool(self._domain.hasManagedSaveImage())

    def definition(self) -> ET.Element:
        """Return the `<domain>` element that its next start begins with."""
        with translated("reading its definition"):
            return description.parse(self._domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def write_metadata(self, change: MetadataChange, *, back: bool = False) -> None:
        """Write an instance's metadata as changed, or (`back`) as it was before."""
        xml = change.before if back else change.after
        with translated("writing its metadata"):
            flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG
            if self._domain.isActive():
                flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
            try:
                self._domain.setMetadata(
                    libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, change.prefix, change.namespace, flags
                )
            except libvirt.libvirtError as error:
                if xml is not None or error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                    raise

    def agent_answers(self) -> bool:
        """Tell whether the guest agent answers a question, within two seconds."""
        try:
            with self._agent_answers_within(_AGENT_TIMEOUT_S):
                self._domain.getTime()
        except libvirt.libvirtError as error:
            LOG.debug("The guest agent does not answer: %s", error)
            return False
        return True

    def addresses(self) -> tuple[str, ...]:
        """Return the first addresses that the guest's interfaces are known to have.

        A guest's agent may say whatever it likes, and as late.
        """
        found: list[str] = []
        for source in _ADDRESS_SOURCES:
            # One way or another is not there; the others may be.
            with contextlib.suppress(libvirt.libvirtError):
                found += self._addresses_by(source)
        reachable = dict.fromkeys(one for one in found if not one.startswith(_LOOPBACK))
        return tuple(reachable)[:_MOST_ADDRESSES]

    def _addresses_by(self, source: int) -> list[str]:
        asks_agent = source == libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
        bound = self._agent_answers_within(_AGENT_TIMEOUT_S)
        with bound if asks_agent else contextlib.nullcontext():
            interfaces = self._domain.interfaceAddresses(source)
        return [
            address["addr"]
            for interface in interfaces.values()
            for address in interface["addrs"] or ()
        ]

    @contextlib.contextmanager
    def _agent_answers_within(self, timeout_s: float) -> Iterator[None]:
        """Bound the guest agent's answers; libvirt keeps that for the domain, so put it back."""
        self._domain.agentSetResponseTimeout(max(1, math.ceil(timeout_s)))
        try:
            yield
        finally:
            self._domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
