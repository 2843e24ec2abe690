# SPDX-License-Identifier: Apache-2.0
"""tools/install takes nothing away from the machine that it runs on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Stand before the real ones. Whatever needs root goes through `sudo`, which only notes it.
COMMANDS = {
    "id": "echo 1000",
    "sudo": 'shift; echo "$@" >>"$NOTES"',
    "getent": "exit 0",
    "tee": "cat >/dev/null",
    "dpkg-query": 'case " $INSTALLED " in *" ${!#} "*) echo -n installed ;; *) exit 1 ;; esac',
    "docker": 'exit "$DOCKER_ANSWERS"',
}


def install(tmp_path: Path, *, installed: str = "", docker_answers: bool) -> str:
    """Run `tools/install test` on a machine of our making; return its apt-get install line."""
    for name, body in COMMANDS.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/bash\n{body}\n")
        command.chmod(0o755)
    notes = tmp_path / "notes"
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "NOTES": str(notes),
        "INSTALLED": installed,
        "DOCKER_ANSWERS": "0" if docker_answers else "1",
    }
    subprocess.run(
        [ROOT / "tools" / "install", "test"],
        env=environment,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (line,) = [line for line in notes.read_text().splitlines() if "apt-get install" in line]
    return line


def test_it_removes_no_package(tmp_path: Path) -> None:
    assert "--no-remove" in install(tmp_path, docker_answers=False).split()


def test_a_machine_without_an_engine_gets_one(tmp_path: Path) -> None:
    assert "docker.io" in install(tmp_path, docker_answers=False).split()


@pytest.mark.parametrize(
    ("installed", "docker_answers"),
    [("docker-ce", False), ("", True)],
    ids=["Docker CE is installed", "a docker command answers"],
)
def test_a_machine_with_an_engine_keeps_it(
    tmp_path: Path, installed: str, docker_answers: bool
) -> None:
    packages = install(tmp_path, installed=installed, docker_answers=docker_answers).split()
    assert "docker.io" not in packages
    assert "debootstrap" in packages
