# SPDX-License-Identifier: Apache-2.0
"""What oslo.utils' inspectors leave to others: tables that are bombs, encryption, a hidden parent.

Called by `inspection` with an inspector that has passed its own safety checks. Each function
raises Refused with the words that complete "the image is refused: ...".
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

#: QEMU's own limits (block/qcow2.h): it must not even be asked to open what lies beyond.
_MIN_CLUSTER_BITS, _MAX_CLUSTER_BITS = 9, 21
_MAX_L1_BYTES = 32 << 20
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20
_ENTRY_BYTES = 8

# Incompatible features (docs/interop/qcow2.txt).
_CORRUPT = 1 << 1
_COMPRESSION_TYPE = 1 << 3
_USUAL_REFCOUNT_ORDER = 4
#: Guests write badly to smaller clusters.
_MIN_DISK_CLUSTER_BITS = 12

_VMDK_MAGIC = b"KDMV"


class Refused(Exception):
    """An image's header asks for what no image may have."""


@dataclasses.dataclass(frozen=True, slots=True)
class Qcow2Header:
    """The fields of a qcow2's header, version 2 and 3, under the names of its specification."""

    magic: bytes
    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    snapshots_offset: int
    incompatible_features: int = 0
    compatible_features: int = 0
    autoclear_features: int = 0
    refcount_order: int = _USUAL_REFCOUNT_ORDER
    header_length: int = 72

    @property
    def is_disk(self) -> bool:
        """Nothing in it is strange to a guest that writes: no snapshots, bitmaps, lazy counts."""
        return (
            self.version >= 3
            and self.cluster_bits >= _MIN_DISK_CLUSTER_BITS
            and not self.incompatible_features & ~_COMPRESSION_TYPE
            and not self.compatible_features
            and not self.autoclear_features
            and not self.nb_snapshots
            and self.refcount_order == _USUAL_REFCOUNT_ORDER
        )


_LAYOUTS = {2: ">4sIQIIQIIQQIIQ", 3: ">4sIQIIQIIQQIIQQQQII"}


def qcow2(header: bytes, file_bytes: int) -> Qcow2Header:
    """Read a qcow2's header; raise Refused if its tables cannot be or are not all there."""
    (version,) = struct.unpack_from(">I", header, 4)
    read = Qcow2Header(*struct.unpack_from(_LAYOUTS[version], header))
    if not _MIN_CLUSTER_BITS <= read.cluster_bits <= _MAX_CLUSTER_BITS:
        raise Refused("its clusters are of a size that cannot be")
    cluster_bytes = 1 << read.cluster_bits
    l1_bytes = read.l1_size * _ENTRY_BYTES
    refcount_bytes = read.refcount_table_clusters * cluster_bytes
    l1_covers_bytes = read.l1_size * cluster_bytes * (cluster_bytes // _ENTRY_BYTES)
    for is_wrong, words in (
        (read.crypt_method, "it is encrypted"),
        (read.incompatible_features & _CORRUPT, "it is marked as corrupt"),
        (l1_bytes > _MAX_L1_BYTES, "its L1 table is too large"),
        (l1_covers_bytes < read.size, "its L1 table is too small for its virtual size"),
        (refcount_bytes > _MAX_REFCOUNT_TABLE_BYTES, "its table of reference counts is too large"),
        (read.header_length > cluster_bytes, "its header is too long"),
        (
            read.l1_table_offset + l1_bytes > file_bytes
            or read.refcount_table_offset + refcount_bytes > file_bytes,
            "its tables lie beyond its end",
        ),
    ):
        if is_wrong:
            raise Refused(words)
    return read


def vmdk(inspector: Any) -> None:
    """Raise Refused if QEMU could read the descriptor otherwise than the inspector did.

    The inspector takes the first `createType` in any case of letters, QEMU the first in
    exactly these; and a parent's name would be a backing file.
    """
    if not inspector.has_region("header") or not inspector.region("header").data.startswith(
        _VMDK_MAGIC
    ):
        raise Refused("it is a mere description of files that lie elsewhere")
    text: str = inspector.desc_text
    if text.count("createtype") != 1:
        raise Refused("its descriptor names several types")
    if "parentfilenamehint" in text:
        raise Refused("it names a parent")
