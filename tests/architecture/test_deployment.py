# SPDX-License-Identifier: Apache-2.0
"""What docs/installation.md has an operator install starts, and reads what it says it reads."""

from __future__ import annotations

import configparser
import getpass
import grp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from common.conf import base

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "etc" / "systemd").glob("*.service"))
ROTATIONS = sorted((ROOT / "etc" / "logrotate.d").iterdir())
INSTALLATION = (ROOT / "docs" / "installation.md").read_text()
PREFIX = "/opt/stillframe/bin/"
BIN = Path(sys.executable).parent


def name_of(path: Path) -> str:
    return path.name


def values(unit: Path, key: str) -> list[str]:
    """Return what a unit says of a key, each time that it does."""
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), flags=re.MULTILINE)


def commands(unit: Path) -> list[list[str]]:
    """Return every command line of a unit that runs a program of ours."""
    lines = [line for key in ("ExecStartPre", "ExecStart") for line in values(unit, key)]
    return [line.split() for line in lines]


def console_scripts() -> set[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return {line.partition("=")[0].strip() for line in lines if line}


def documented(daemon: str) -> dict[str, str]:
    """Return the options of the file that installation.md has an operator write for a daemon."""
    found = re.search(rf"`/etc/stillframe/{daemon}\.conf`:\n\n```ini\n(.*?)```", INSTALLATION, re.S)
    assert found
    parsed = configparser.ConfigParser()
    parsed.read_string(found.group(1))
    return dict(parsed.defaults())


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_a_unit_starts_a_program_of_ours(unit: Path) -> None:
    programs = [words[0] for words in commands(unit)]
    assert f"{PREFIX}{unit.stem}" in programs
    assert {program.removeprefix(PREFIX) for program in programs} <= console_scripts()


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_a_program_knows_the_options_that_its_unit_gives_it(unit: Path, tmp_path: Path) -> None:
    for program, *options in commands(unit):
        load = "import sys; from common import conf; conf.load(sys.argv[2:], sys.argv[1])"
        name = program.removeprefix(PREFIX)
        done = subprocess.run(
            [sys.executable, "-c", load, name, *options],
            cwd=ROOT,
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", sorted(console_scripts()))
def test_a_program_is_installed_and_tells_its_options(program: str) -> None:
    command = [BIN / program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "--config-file" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_no_unit_migrates_a_database_that_others_share(unit: Path) -> None:
    assert not values(unit, "ExecStartPre")


@pytest.mark.parametrize("key", ["StateDirectory", "LogsDirectory", "RuntimeDirectory"])
def test_no_unit_gets_a_directory_in_which_anothers_lies(key: str) -> None:
    """systemd gives the whole tree to the unit's user."""
    owned = [(unit, PurePosixPath(one)) for unit in UNITS for one in values(unit, key)]
    for unit, mine in owned:
        for other, theirs in owned:
            assert unit == other or not theirs.is_relative_to(mine), f"{unit.name}, {other.name}"


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_configuration_unit_and_logrotate_name_the_same_directories(unit: Path) -> None:
    options = documented(unit.stem)
    assert values(unit, "StateDirectory") == [options["state_path"].removeprefix("/var/lib/")]
    assert values(unit, "LogsDirectory") == [options["log_dir"].removeprefix("/var/log/")]
    rotation = (ROOT / "etc" / "logrotate.d" / unit.stem).read_text()
    assert f"{options['log_dir']}/*.log {{" in rotation


@pytest.mark.parametrize("file", [*UNITS, *ROTATIONS], ids=name_of)
def test_the_installation_names_each_file(file: Path) -> None:
    assert f"`{file.parent.name}/{file.name}`" in INSTALLATION


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_systemd_does_not_cut_a_drain_short(unit: Path) -> None:
    (drain_s,) = [opt.default for opt in base.OPTS if opt.dest == "graceful_shutdown_timeout"]
    assert int(values(unit, "TimeoutStopSec")[0]) > drain_s


def test_nothing_kills_the_sentinel_when_the_agent_dies() -> None:
    """With any other KillMode systemd does, at the moment for which it is there."""
    unit = ROOT / "etc" / "systemd" / "stillframe-compute.service"
    assert values(unit, "KillMode") == ["process"]
    assert values(unit, "OOMPolicy") == ["continue"]
    assert values(unit, "TimeoutStartSec") == ["infinity"], "a recovery takes as long as it takes"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_systemd_finds_no_fault_with_a_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PREFIX, f"{BIN}/"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, str(copy) in done.stderr) == (0, False), done.stderr


@pytest.mark.skipif(
    not shutil.which("logrotate", path="/usr/sbin:/sbin"), reason="logrotate is not installed"
)
@pytest.mark.parametrize("rotation", ROTATIONS, ids=name_of)
def test_logrotate_finds_no_fault_with_a_file(rotation: Path, tmp_path: Path) -> None:
    copy = tmp_path / rotation.name
    here = f"su {getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
    copy.write_text(rotation.read_text().replace("su stillframe stillframe", here))
    copy.chmod(0o644)
    done = subprocess.run(
        ["logrotate", "--debug", "--state", str(tmp_path / "state"), str(copy)],
        env={**os.environ, "PATH": "/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "error:" in done.stderr) == (0, False), done.stderr
    assert "/var/log/stillframe/" in done.stderr


def test_a_hypervisors_logrotate_needs_no_user_of_ours() -> None:
    rotation = ROOT / "etc" / "logrotate.d" / "stillframe-compute"
    lines = [line.split("#")[0].split() for line in rotation.read_text().splitlines()]
    assert not any("su" in words or "stillframe" in words for words in lines)


READ = """
import sys
from common import conf
settings = conf.load(sys.argv[2:], sys.argv[1])
print(settings.state_path, settings.report_interval, settings.host)
"""


def what_it_reads(home: Path, prog: str, *arguments: str) -> list[str]:
    """Return state_path, report_interval and host as a program finds them below ~/.stillframe."""
    command = [sys.executable, "-c", READ, prog, *arguments]
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Files as an operator has them, in ~/.stillframe, which goes before /etc/stillframe."""
    files = {
        "stillframe.conf": "state_path = /common\nreport_interval = 1\nhost = common",
        "stillframe-api.conf": "state_path = /api\nreport_interval = 2",
        "stillframe-compute.conf": "state_path = /compute\nreport_interval = 3",
        "stillframe.conf.d/site.conf": "report_interval = 4",
        "stillframe-compute.conf.d/this.conf": "report_interval = 5",
    }
    for name, text in files.items():
        file = tmp_path / ".stillframe" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"[DEFAULT]\n{text}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("prog", "read"),
    [
        ("stillframe-api", ["/api", "4", "common"]),
        ("stillframe-manage", ["/api", "4", "common"]),
        ("stillframe-compute", ["/compute", "5", "common"]),
    ],
)
def test_each_program_reads_its_files_and_later_ones_override(
    home: Path, prog: str, read: list[str]
) -> None:
    assert what_it_reads(home, prog) == read


def test_a_named_file_is_the_only_one(home: Path) -> None:
    """Else a second cloud on the machine would talk to the first one's broker."""
    named = home / "named.conf"
    named.write_text("[DEFAULT]\nhost = named\n")
    read = what_it_reads(home, "stillframe-api", "--config-file", str(named))
    assert read == ["/var/lib/stillframe", "10", "named"]
    read = what_it_reads(home, "stillframe-api", f"--config-file={named}")
    assert read == ["/var/lib/stillframe", "10", "named"]
