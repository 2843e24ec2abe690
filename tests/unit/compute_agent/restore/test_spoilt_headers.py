# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in an image's first bytes, it is judged or refused, and nothing breaks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from common.flatten import UnsafeImage
from compute_agent.restore.errors import ImageTooLarge
from compute_agent.restore.inspection import Inspection
from tests.unit.compute_agent.restore.shelf import SIZE, Shelf, converted, qcow2

#: Where each format keeps what is parsed: (offset, length).
PLACES = {
    "qcow2": ((0, 112),),
    "vmdk": ((0, 80), (512, 512)),
    "vdi": ((0, 512),),
    "vhd": ((0, 512),),
    "vhdx": ((0, 32), (192 << 10, 128), (3 << 20, 512), (3136 << 10, 64)),
    "raw": ((0, 512), (446, 66), (32 << 10, 2048)),
}
ROUNDS = 30


@pytest.mark.parametrize("disk_format", PLACES)
def test_it_is_judged_or_refused(shelf: Shelf, tmp_path: Path, disk_format: str) -> None:
    made = converted(qcow2(tmp_path / "sound"), {"vhd": "vpc"}.get(disk_format, disk_format))
    # What is parsed stands at the beginning; the rest would only take time.
    sound = made.read_bytes()[: 4 << 20]
    dice = random.Random(disk_format)
    outcomes = set()
    for _ in range(ROUNDS):
        data = bytearray(sound)
        for _ in range(dice.randint(0, 3)):
            at, length = dice.choice(PLACES[disk_format])
            begin = at + dice.randrange(length)
            data[begin : begin + dice.randint(1, 8)] = dice.choice(
                (bytes(8), b"\xff" * 8, dice.randbytes(8))
            )
        outcomes.add(judged(shelf, bytes(data), disk_format))
    assert "sound" in outcomes
    assert outcomes <= {"sound", "refused"}


def judged(shelf: Shelf, data: bytes, disk_format: str) -> str:
    image = shelf.put(data, disk_format)
    inspection = Inspection(image, most_bytes=2 * SIZE)
    try:
        for at in range(0, len(data), 1 << 20):
            inspection.look_at(data[at : at + (1 << 20)])
        assert inspection.verdict().virtual_bytes <= 2 * SIZE
    except (UnsafeImage, ImageTooLarge) as error:
        return "it tells a path" if "/" in error.message else "refused"
    return "sound"
