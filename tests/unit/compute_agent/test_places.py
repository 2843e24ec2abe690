# SPDX-License-Identifier: Apache-2.0
"""The directory of the instances belongs to one agent: another one does not start on it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import ConfigurationError
from compute_agent.cmd import _Births
from compute_agent.places import Places

HOLDER = """
import sys
from pathlib import Path
from compute_agent.places import Places
held = Places(root=Path(sys.argv[1])).hold("other-host")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places(root=tmp_path / "instances")
    places.make()
    return places


def test_another_agent_is_refused_and_told_who_has_it_until_that_one_is_gone(
    places: Places,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(places.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigurationError) as refused:
            places.hold("this-host")
        # However it ends.
        other.kill()
    assert f"another agent (pid {other.pid}, host other-host) uses" in refused.value.message
    assert "[spawn] instances_directory" in refused.value.message
    held = places.hold("this-host")
    assert held is not None
    held.close()
    assert places.unfinished() == [], "the lock is no instance"


def test_an_agent_holds_the_directory_that_it_is_configured_for(tmp_path: Path) -> None:
    group = SimpleNamespace(
        instances_directory=str(tmp_path),
        virt_type="qemu",
        verify_marker="ready",
        verify_memory=64,
        verify_timeout=1,
    )
    settings: Any = SimpleNamespace(spawn=group, host="a")
    tools: Any = SimpleNamespace()
    births = _Births(settings, tools)
    with pytest.raises(ConfigurationError, match="instances_directory"):
        _Births(settings, tools)
    assert births._lock is not None
    births._lock.close()


def test_where_there_are_no_locks_an_operator_is_warned(
    places: Places, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert places.hold("this-host") is None
    (told,) = [one for one in caplog.records if one.levelname == "WARNING"]
    assert "no other agent" in told.getMessage()
