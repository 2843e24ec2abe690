# SPDX-License-Identifier: Apache-2.0
"""A job's files are its own, found again after a crash, and removed without a trace."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from compute_agent.capture.workspace import Directories


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    directories = Directories(scratch=tmp_path / "scratch", sockets=tmp_path / "s")
    directories.make()
    return directories


def test_what_a_job_left_is_found_and_removed(directories: Directories) -> None:
    workspace = directories.of_job(str(uuid.uuid4()))
    workspace.make((os.getuid(), os.getgid()))
    workspace.scratch_file("vda").write_bytes(b"x")
    assert directories.leftovers() == [workspace]
    workspace.remove()
    workspace.remove()
    assert directories.leftovers() == []


def test_a_job_s_directories_are_closed_to_others(directories: Directories) -> None:
    workspace = directories.of_job(str(uuid.uuid4()))
    workspace.make((os.getuid(), os.getgid()))
    assert [path.stat().st_mode & 0o777 for path in (workspace.scratch, workspace.sockets)] == [
        0o700,
        0o700,
    ]


def test_a_socket_directory_that_is_too_long_is_refused_at_start(tmp_path: Path) -> None:
    directories = Directories(scratch=tmp_path / "scratch", sockets=tmp_path / ("x" * 100))
    with pytest.raises(ConfigurationError, match="socket_directory is too long"):
        directories.make()


def test_a_directory_that_cannot_be_made_is_refused_by_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directories = Directories(scratch=tmp_path / "file" / "scratch", sockets=tmp_path / "s")
    with pytest.raises(ConfigurationError, match="scratch_directory"):
        directories.make()
