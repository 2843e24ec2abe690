# SPDX-License-Identifier: Apache-2.0
"""Has glibc keep the memory of freed buffers rather than give it back to the kernel.

A stream goes through buffers of a megabyte and a little more. Left to itself
glibc maps each of these anew, and the kernel clears it page by page: a quarter
of the agent's time in a snapshot, and half of qemu-nbd's. `mallopt(3)` has the
two settings.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: What is smaller is not mapped by itself: above our largest buffers and what is added to them.
_MAPPED_FROM_BYTES = 2 << 20
#: How much may lie free at the end of a heap. The agent has several heaps, and each snapshot's
#: threads take others: with 16 MiB it grew by 25 MiB in twenty snapshots, with this not at all.
_KEPT_BYTES = 4 << 20
#: A qemu-nbd has one, and ends with its snapshot; what it frees at once is more.
_KEPT_BY_QEMU_NBD_BYTES = 16 << 20

#: The same for qemu-nbd.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(_MAPPED_FROM_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BY_QEMU_NBD_BYTES),
}


def keep() -> None:
    """Set it for this process; another C library than glibc is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
