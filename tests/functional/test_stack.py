# SPDX-License-Identifier: Apache-2.0
"""The private parts themselves: they stop whole, and take no stranger for their own."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.functional.conftest import CACHE
from tools.stack.glance import Glance
from tools.stack.guest import Guest, GuestWish
from tools.stack.libvirtd import Libvirtd
from tools.stack.process import Process, kept_port

_UPLOADS = 8
_ADMIN = {
    "X-User-Id": "u",
    "X-Tenant-Id": "p",
    "X-Roles": "admin",
    "X-Identity-Status": "Confirmed",
}


def _exists(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_stop_ends_the_guests_of_a_libvirtd_that_died(
    tmp_path: Path, guest_image: Path, accelerator: str
) -> None:
    libvirtd = Libvirtd(tmp_path / "libvirt", CACHE)
    guest = Guest(
        libvirtd, guest_image, tmp_path / "guests", GuestWish(name="test-orphan"), accelerator
    )
    pid = 0
    try:
        libvirtd.start()
        guest.define()
        guest.start()
        pid = int((libvirtd.run / "qemu" / "test-orphan.pid").read_text())
        libvirtd.process.kill()
        assert _exists(pid), "the guest should outlive its libvirtd, or this proves nothing"
        libvirtd.stop()
        assert not _exists(pid)
        assert not libvirtd.run.exists()
    finally:
        guest.console.close()
        libvirtd.stop()
        if pid and _exists(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_kept_port_that_a_stranger_took_is_given_up(tmp_path: Path) -> None:
    process, record = Process("nobody", tmp_path), tmp_path / "port"
    port = kept_port(record, process)
    assert kept_port(record, process) == port
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        assert kept_port(record, process) != port


def test_a_daemon_that_ended_is_not_ready_though_something_answers(tmp_path: Path) -> None:
    process = Process("short-lived", tmp_path)
    process.start(["sh", "-c", "exit 1"])
    process.stop()
    with pytest.raises(RuntimeError, match="ended at its start"):
        process.wait_until(lambda: True, timeout_s=5)


def test_glance_bears_a_burst_of_uploads(tmp_path: Path, glance_venv: Path) -> None:
    glance = Glance(tmp_path / "glance", glance_venv)

    def upload(number: int) -> tuple[int, str]:
        url = f"{glance.endpoint}/v2/images"
        body = {"name": f"burst-{number}", "disk_format": "raw", "container_format": "bare"}
        image = requests.post(url, json=body, headers=_ADMIN, timeout=60).json()["id"]
        reply = requests.put(
            f"{url}/{image}/file",
            data=iter([bytes(65536)] * 4),
            headers={**_ADMIN, "Content-Type": "application/octet-stream"},
            timeout=60,
        )
        shown = requests.get(f"{url}/{image}", headers=_ADMIN, timeout=60).json()
        return reply.status_code, shown["status"]

    try:
        glance.start()
        with ThreadPoolExecutor(_UPLOADS) as pool:
            uploaded = set(pool.map(upload, range(_UPLOADS)))
    finally:
        glance.stop()
    assert uploaded == {(204, "active")}
