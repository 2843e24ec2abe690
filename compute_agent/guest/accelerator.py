# SPDX-License-Identifier: Apache-2.0
"""Whether this host's KVM really runs a guest: it may be there and not do it.

A machine of 16 MiB boots a disk of one sector whose code writes a byte to a port
that ends QEMU. If that byte comes in time, a virtual processor has run.
"""

from __future__ import annotations

import logging
import platform
import subprocess
import tempfile
from pathlib import Path

LOG = logging.getLogger(__name__)

#: Where KVM runs guests, it does so in a fraction of a second.
_PROBE_S = 5
_KVM = Path("/dev/kvm")
_SECTOR_BYTES, _SIGNATURE = 512, b"\x55\xaa"
#: mov al, 0x10; out 0xf4, al; hlt
_CODE = b"\xb0\x10\xe6\xf4\xf4"
#: What QEMU makes of that byte.
_EXIT_STATUS = (0x10 << 1) | 1


def virt_type(wanted: str) -> str:
    """Return libvirt's type of a new domain, "kvm" or "qemu", for the option `virt_type`."""
    if wanted != "auto":
        return wanted
    found = "kvm" if _KVM.exists() and _runs_with("kvm") else "qemu"
    LOG.info("New instances run with %s", "KVM" if found == "kvm" else "software emulation")
    return found


def _runs_with(accelerator: str) -> bool:
    if platform.machine() != "x86_64":
        # The code is x86's; elsewhere the device alone must do.
        return True
    with tempfile.NamedTemporaryFile(suffix=".raw") as disk:
        code = _CODE.ljust(_SECTOR_BYTES - len(_SIGNATURE), b"\0")
        disk.write(code + _SIGNATURE)
        disk.flush()
        command = [
            *("qemu-system-x86_64", "-accel", accelerator, "-m", "16", "-nodefaults"),
            *("-display", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
            *("-drive", f"file={disk.name},format=raw,if=ide,readonly=off", "-boot", "c"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_PROBE_S, check=False)
        except (subprocess.TimeoutExpired, OSError) as error:
            LOG.warning("%s does not run a guest here: %s", accelerator, error)
            return False
    if done.returncode != _EXIT_STATUS:
        words = done.stderr.decode(errors="replace").strip()
        LOG.warning("%s does not run a guest here: %s", accelerator, words)
    return done.returncode == _EXIT_STATUS
