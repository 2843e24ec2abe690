# SPDX-License-Identifier: Apache-2.0
"""libvirt's errors in our words.

What libvirt says may name paths and hosts, so it goes to the log; the
exception carries a sentence that a tenant may read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from common.errors import InstanceBusy, InstanceNotFound, StillframeError

LOG = logging.getLogger(__name__)

_LOST = frozenset(
    {
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_AUTH_FAILED,
    }
)


class HypervisorError(StillframeError):
    """libvirt or QEMU refused or failed an operation; the log has its words."""

    code = "hypervisor_error"


class HypervisorUnavailable(StillframeError):
    """The libvirt daemon cannot be reached."""

    code = "hypervisor_unavailable"
    retryable = True


class NetworkNotFound(StillframeError):
    """The host has no libvirt network of that name or id."""

    code = "network_not_found"


class NetworkInactive(StillframeError):
    """The host's libvirt network is not started, so no guest can be on it."""

    code = "network_inactive"


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn a libvirtError raised while `doing` into an exception of ours, and log its words."""
    try:
        yield
    except libvirt.libvirtError as error:
        LOG.warning("libvirt, %s: %s", doing, error)
        raise _translate(error, doing) from error


def is_connection_loss(error: libvirt.libvirtError) -> bool:
    """Tell whether the error means that the daemon is gone, not that it refused."""
    remote = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_STREAMS)
    return error.get_error_code() in _LOST and error.get_error_domain() in remote


def _translate(error: libvirt.libvirtError, doing: str) -> StillframeError:
    if is_connection_loss(error):
        return HypervisorUnavailable(f"the hypervisor's service went away while {doing}")
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return InstanceNotFound("the instance no longer exists on its host")
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return InstanceBusy(f"another operation held the instance while {doing}")
    return HypervisorError(f"the hypervisor failed while {doing}")
