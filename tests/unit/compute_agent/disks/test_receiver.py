# SPDX-License-Identifier: Apache-2.0
"""Whoever reads a frozen disk slowly, or stops reading it, never holds up the QEMU that serves it.

A qemu-storage-daemon stands for it: the server that is stopped here is the one
that a guest's QEMU stops when its backup job ends, in the loop that its vCPUs
wait for.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compute_agent.disks.nbd import NbdClient, NbdConnectionLost

MIB = 1 << 20
TIMEOUT_S = 20.0
PIECES = [(at * MIB, MIB) for at in range(64)]


class StorageDaemon:
    """Serves a disk of 64 MiB without a zero in it as the export `vda`."""

    def __init__(self, directory: Path) -> None:
        self.socket_path = directory / "nbd"
        self._monitor_path = directory / "qmp"
        disk = directory / "disk"
        disk.write_bytes(b"\1" * 64 * MIB)
        self.process = subprocess.Popen(
            [
                "qemu-storage-daemon",
                *("--blockdev", f"driver=file,node-name=disk,filename={disk}"),
                *("--nbd-server", f"addr.type=unix,addr.path={self.socket_path}"),
                *("--export", "type=nbd,id=export,node-name=disk,name=vda"),
                *("--chardev", f"socket,id=monitor,path={self._monitor_path},server=on,wait=off"),
                *("--monitor", "chardev=monitor"),
            ]
        )
        self._monitor = self._connect()
        self.obey("qmp_capabilities")

    def obey(self, command: str) -> dict[str, Any]:
        """Give a monitor command; raise TimeoutError if it is not done in a few seconds."""
        self._monitor.write(json.dumps({"execute": command}).encode() + b"\n")
        while "return" not in (answer := json.loads(self._monitor.readline())):
            assert "error" not in answer, answer
        return dict(answer)

    def _connect(self) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(5)
        while True:
            try:
                line.connect(str(self._monitor_path))
            except OSError:
                assert time.monotonic() < deadline, "qemu-storage-daemon did not start"
                time.sleep(0.02)
            else:
                return line.makefile("rwb", buffering=0)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(tmp_path)
    yield daemon
    daemon.process.kill()
    daemon.process.wait(TIMEOUT_S)


def test_a_consumer_that_takes_nothing_more_does_not_hold_up_the_server(
    daemon: StorageDaemon,
) -> None:
    with NbdClient(daemon.socket_path, "vda") as client:
        buffers = client.read_in_order(PIECES)
        next(buffers)
        daemon.obey("nbd-server-stop")
        with pytest.raises(NbdConnectionLost):
            list(buffers)


def test_a_reader_that_is_abandoned_does_not_hold_up_the_server(daemon: StorageDaemon) -> None:
    client = NbdClient(daemon.socket_path, "vda")
    buffers = client.read_in_order(PIECES)
    next(buffers)
    buffers.close()
    daemon.obey("nbd-server-stop")
    client.close()


def test_an_aborted_connection_does_not_hold_up_the_server_though_nobody_closes_it(
    daemon: StorageDaemon,
) -> None:
    client = NbdClient(daemon.socket_path, "vda")
    for offset, length in PIECES[:8]:
        client._request(0, offset, length, offset + 1)
    deadline = time.monotonic() + TIMEOUT_S
    while not client._socket.recv(1, socket.MSG_PEEK) and time.monotonic() < deadline:
        pass  # until the server has begun to answer
    client.abort()
    daemon.obey("nbd-server-stop")
    client.close()
