# SPDX-License-Identifier: Apache-2.0
"""Our NBD reader and our qemu-nbd, against each other and against what can go wrong."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.qemu_img import QemuImgError, backing_chain
from compute_agent.disks.nbd import NbdClient, NbdConnectionLost, NbdRefused
from compute_agent.disks.qemu_nbd import QemuNbd, QemuNbdError

MIB = 1 << 20
ROOT = Path(__file__).parents[4]


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """8 MiB of qcow2 over a base: noise at 1, a hole at 3, the base's noise at 5, zeros at 6."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(base), "8M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 5M 1M", str(base))
    over = ["-b", str(base), "-F", "qcow2"]
    run("qemu-img", "create", "-q", "-f", "qcow2", *over, str(top))
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 1M", "-c", "write -z 6M 1M", str(top))
    return top


@pytest.fixture
def server(disk: Path, tmp_path: Path) -> Iterator[QemuNbd]:
    with QemuNbd(
        str(disk), image_format="qcow2", socket_path=tmp_path / "s", export_name="vda"
    ) as server:
        yield server


def test_the_block_map_tells_data_from_what_reads_as_zeros(server: QemuNbd) -> None:
    with NbdClient(str(server.socket_path), "vda") as client:
        assert client.size_bytes == 8 * MIB
        data = [(e.offset // MIB, e.length // MIB) for e in client.extents() if not e.flags & 2]
    assert data == [(1, 1), (5, 1)]


def test_reads_come_in_the_order_of_asking_and_through_the_whole_chain(server: QemuNbd) -> None:
    expected = bytearray(8 * MIB)
    expected[MIB : 2 * MIB] = b"\1" * MIB
    expected[5 * MIB : 6 * MIB] = b"\5" * MIB
    chance = random.Random(7)
    pieces = [(chance.randrange(7 * MIB), chance.randrange(1, MIB)) for _ in range(60)]
    with NbdClient(str(server.socket_path), "vda") as client:
        read = list(client.read_in_order(pieces))
    assert [bytes(one) for one in read] == [bytes(expected[at : at + n]) for at, n in pieces]


def test_an_export_that_is_not_there_is_refused(server: QemuNbd) -> None:
    with pytest.raises(NbdRefused):
        NbdClient(str(server.socket_path), "vdb")


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(NbdConnectionLost):
        NbdClient(str(tmp_path / "nobody"), "vda")


def test_a_server_that_dies_in_the_middle_is_told(server: QemuNbd) -> None:
    with NbdClient(str(server.socket_path), "vda") as client:
        reads = client.read_in_order((at * MIB % (8 * MIB), MIB) for at in range(10_000))
        next(reads)
        assert server._process is not None
        server._process.kill()
        with pytest.raises(NbdConnectionLost):
            for _ in reads:
                pass


def test_a_server_that_never_answers_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "silent"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        accepted: list[socket.socket] = []
        thread = threading.Thread(target=lambda: accepted.append(silent.accept()[0]))
        thread.start()
        began = time.monotonic()
        with pytest.raises(NbdConnectionLost):
            NbdClient(str(path), "vda", timeout_s=0.2)
        assert time.monotonic() - began < 5
        thread.join()
        accepted[0].close()


def test_a_raw_disk_is_served_as_it_is_whatever_a_guest_wrote_into_it(
    disk: Path, tmp_path: Path
) -> None:
    """OSSA-2016-001: a qcow2 header inside a raw disk must not be believed."""
    served = QemuNbd(str(disk), image_format="raw", socket_path=tmp_path / "s")
    with served, NbdClient(str(served.socket_path), "") as client:
        assert client.size_bytes == disk.stat().st_size
        (head,) = client.read_in_order([(0, 4)])
    assert bytes(head) == b"QFI\xfb"


def test_a_chain_that_leaves_a_format_to_guessing_is_refused(disk: Path) -> None:
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", str(disk))
    # qemu-img itself no longer makes such images, so the header is changed by hand.
    base = str(disk.with_name("base.qcow2"))
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", str(disk))
    content = bytearray(disk.read_bytes())
    at = content.index(b"\xe2\x79\x2a\xca")  # the extension that records the format
    content[at : at + 4] = b"\x12\x34\x56\x78"  # one that nobody knows
    disk.write_bytes(content)
    with pytest.raises(QemuImgError):
        backing_chain(disk, "qcow2")


def test_an_image_that_is_in_use_is_refused_in_words(disk: Path, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        ["qemu-nbd", "--format=qcow2", f"--socket={tmp_path / 'w'}", "--persistent", str(disk)]
    )
    try:
        deadline = time.monotonic() + 10
        while not (tmp_path / "w").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(QemuNbdError, match="in use"):
            QemuNbd(str(disk), image_format="qcow2", socket_path=tmp_path / "s").start()
    finally:
        holder.terminate()
        holder.wait(10)


SERVE_AND_WAIT = """
import sys, time
from compute_agent.disks.qemu_nbd import QemuNbd
server = QemuNbd(sys.argv[1], image_format="qcow2", socket_path=sys.argv[2])
server.start()
print(server._process.pid, flush=True)
time.sleep(60)
"""


def test_the_server_ends_when_its_agent_is_killed(disk: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVE_AND_WAIT, str(disk), str(tmp_path / "s")]
    agent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    os.kill(agent.pid, signal.SIGKILL)
    agent.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "qemu-nbd outlived its agent"
        time.sleep(0.02)
