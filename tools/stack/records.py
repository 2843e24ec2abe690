# SPDX-License-Identifier: Apache-2.0
"""Reads the guest's records from a raw disk: is it one point in time, without a gap?

`tools/guest/pulse.c` writes record n+1 only when record n is on the disk. So an
image of one instant holds, round its ring, an unbroken run of records up to the
newest, and not one that is newer or damaged.
"""

from __future__ import annotations

import struct
from pathlib import Path

_RECORD_BYTES = 4096
_MAGIC = b"SFRECORD"
_HEAD = struct.Struct("<8sQQQ")
_CHECK = 0x5346
_SECTOR_BYTES = 512
_PARTITION_TABLE_AT = 446
_THIRD = 2


class Torn(AssertionError):
    """The image is no single point in time; the message says where it breaks."""


def newest_record(raw_disk: Path) -> int:
    """Return the newest record's number (0: none was written yet).

    Raises Torn if a record is damaged, missing or newer than the newest.
    """
    with raw_disk.open("rb") as disk:
        begin, length = _third_partition(disk.read(_SECTOR_BYTES))
        disk.seek(begin)
        return _newest(disk.read(length))


def newest_mirrored(raw_mirror: Path, raw_disk: Path) -> int:
    """Return the newest record's number on the disk that `raw_disk`'s records are mirrored to.

    Raises Torn as `newest_record` does.
    """
    with raw_disk.open("rb") as disk:
        _begin, length = _third_partition(disk.read(_SECTOR_BYTES))
    with raw_mirror.open("rb") as mirror:
        return _newest(mirror.read(length))


def _newest(data: bytes) -> int:
    slots = len(data) // _RECORD_BYTES
    sequences = [_sequence(data, slot) for slot in range(slots)]
    newest = max(sequences)
    for back in range(min(newest, slots)):
        expected = newest - back
        found = sequences[(expected - 1) % slots]
        if found != expected:
            raise Torn(f"record {expected} should precede {newest}, its slot holds {found}")
    return newest


def _third_partition(boot_sector: bytes) -> tuple[int, int]:
    at = _PARTITION_TABLE_AT + 16 * _THIRD
    first, count = struct.unpack_from("<II", boot_sector, at + 8)
    return first * _SECTOR_BYTES, count * _SECTOR_BYTES


def _sequence(data: bytes, slot: int) -> int:
    at = slot * _RECORD_BYTES
    magic, sequence, written_us, check = _HEAD.unpack_from(data, at)
    if magic == bytes(8):
        return 0
    if magic != _MAGIC or check != sequence ^ written_us ^ _CHECK:
        raise Torn(f"the record in slot {slot} is damaged")
    if data[at + _HEAD.size : at + _RECORD_BYTES] != _noise(int(sequence)):
        raise Torn(f"record {sequence} in slot {slot} is torn")
    return int(sequence)


def _noise(sequence: int) -> bytes:
    """What pulse.c fills a record with, behind its head."""
    mask = (1 << 64) - 1
    noise = (sequence * 0x9E3779B97F4A7C15 + 1) & mask
    words = []
    for _ in range(_RECORD_BYTES // 8):
        noise ^= (noise << 13) & mask
        noise ^= noise >> 7
        noise ^= (noise << 17) & mask
        words.append(noise)
    return struct.pack(f"<{len(words)}Q", *words)[_HEAD.size :]
