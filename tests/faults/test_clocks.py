# SPDX-License-Identifier: Apache-2.0
"""A daemon's wall clock jumps by an hour in the middle of a job: it ends as if nothing had been."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.faults import checks
from tests.functional.snapshots import ADMIN, ask, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

_SOURCE = Path(__file__).with_name("clock.c")
_JUMPS_S = {"forward": 3600, "back": -3600}


class Clock:
    """The wall clock of one daemon; it stands right until it is told to jump."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._library, self._offset = directory / "clock.so", directory / "offset"
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(_SOURCE)]
        subprocess.run(command, check=True, timeout=60)
        self.jump(0)

    def jump(self, ahead_s: int) -> None:
        """Be so many seconds ahead of the host's from now on."""
        data = struct.pack("=q", ahead_s)
        if not self._offset.exists():
            self._offset.write_bytes(data)
        with self._offset.open("r+b") as file:
            file.write(data)

    def environment(self) -> dict[str, str]:
        """What makes a process see this clock."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET_FILE": str(self._offset)}


@pytest.fixture(params=["agent", pytest.param("api", marks=pytest.mark.long)])
def clock(
    request: pytest.FixtureRequest, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Clock]:
    """Have one of the daemons live by a clock of its own; by the host's again afterwards."""
    clock = Clock(tmp_path / "clock")
    process = getattr(cloud, request.param)
    start = cloud.start_agent if request.param == "agent" else cloud.start_api
    process.stop()
    with monkeypatch.context() as patched:
        for name, value in clock.environment().items():
            patched.setenv(name, value)
        start()
    yield clock
    process.stop()
    start()


@pytest.mark.parametrize("jump", _JUMPS_S)
def test_the_clock_jumps_in_an_upload(
    cloud: Cloud, running_guest: Guest, tmp_path: Path, clock: Clock, jump: str
) -> None:
    guest, where = running_guest, f"the clock jumps {jump}"
    asked = ask(cloud, guest)
    wait_for(lambda: asked.job()["bytes_done"] > 0, "bytes on their way")
    clock.jump(_JUMPS_S[jump])
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    folder = tmp_path / "image"
    folder.mkdir()
    checks.assert_whole_or_gone(asked, folder, where)
    checks.assert_untouched(cloud, guest, where)

    def is_up() -> bool:
        url = f"{cloud.api_url}/v2.1/os-services"
        services = requests.get(url, headers=ADMIN, timeout=10).json()["services"]
        return any(one["state"] == "up" for one in services)

    wait_for(is_up, "an agent that counts as up", 15)
    again = ask(cloud, guest).ended()
    assert again["state"] == "done", again["reason"]
