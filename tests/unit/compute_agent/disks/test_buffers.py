# SPDX-License-Identifier: Apache-2.0
"""The memory of a stream's buffers: got from the kernel once, not for each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from compute_agent.disks.nbd import NbdClient
from compute_agent.disks.qemu_nbd import QemuNbd

MIB = 1 << 20
ROUNDS = 64
#: Were each buffer mapped anew, each of its pages would be faulted in.
ANEW = ROUNDS * MIB // 4096

AGENT = f"""
import resource
from compute_agent.disks import buffers
buffers.keep()
for _ in range({ROUNDS}):
    b"%x\\r\\n%b\\r\\n" % ({MIB}, bytearray({MIB}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
for _ in range({ROUNDS}):
    b"%x\\r\\n%b\\r\\n" % ({MIB}, bytearray({MIB}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def test_the_agent_s_buffers_are_not_faulted_in_anew() -> None:
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", AGENT],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    before, after = map(int, done.stdout.split())
    assert after - before < ANEW / 10


def test_qemu_nbd_s_buffers_are_not_faulted_in_anew(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"\1" * 4 * MIB)
    with (
        QemuNbd(str(disk), image_format="raw", socket_path=tmp_path / "s") as server,
        NbdClient(str(server.socket_path)) as client,
    ):
        assert server._process is not None
        stat = Path(f"/proc/{server._process.pid}/stat")
        pieces = [(number % 4 * MIB, MIB) for number in range(ROUNDS)]
        for _ in client.read_in_order(pieces):
            pass
        before = _minor_faults(stat)
        for _ in client.read_in_order(pieces):
            pass
        assert _minor_faults(stat) - before < ANEW / 4


def _minor_faults(stat: Path) -> int:
    return int(stat.read_text().rpartition(")")[2].split()[7])
