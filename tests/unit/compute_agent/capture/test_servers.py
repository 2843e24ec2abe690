# SPDX-License-Identifier: Apache-2.0
"""The servers of a capture end together, as far as they end at all."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from compute_agent.capture.servers import Servers
from compute_agent.capture.workspace import Workspace
from compute_agent.disks.qemu_nbd import QemuNbdError


class Server:
    """Ends when it is asked, or not."""

    def __init__(self, *, ends: bool) -> None:
        self.ends = ends
        self.asked = 0

    def stop(self) -> None:
        self.asked += 1
        if not self.ends:
            raise subprocess.TimeoutExpired("qemu-nbd", 5)


def test_a_server_that_does_not_end_loses_no_other_and_is_asked_again(tmp_path: Path) -> None:
    servers = Servers(Workspace(scratch=tmp_path, sockets=tmp_path))
    stuck, other = Server(ends=False), Server(ends=True)
    some: list[Any] = [stuck, other]
    servers._servers = some
    with pytest.raises(QemuNbdError):
        servers.stop()
    assert other.asked == 1
    stuck.ends = True
    servers.stop()
    assert (stuck.asked, other.asked) == (2, 1)
    servers.stop()
    assert stuck.asked == 2
