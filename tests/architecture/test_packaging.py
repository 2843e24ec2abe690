# SPDX-License-Identifier: Apache-2.0
"""What an installation brings along, and whether the committed samples are current."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NOT_ON_A_HYPERVISOR = {
    "sqlalchemy",
    "alembic",
    "oslo-db",
    "falcon",
    "cheroot",
    "pymysql",
    "psycopg",
}
NOT_IN_THE_API = {"libvirt-python"}


def closure(extra: str) -> set[str]:
    """Return every distribution that `stillframe[extra]` pulls in, as installed here."""
    seen: set[tuple[str, str]] = set()
    todo = [("stillframe", extra)]
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            applies = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": one}) for one in {wanted, ""}
            )
            if applies:
                needed = requirement.name.lower().replace("_", "-").replace(".", "-")
                todo.extend((needed, one) for one in requirement.extras or {""})
    return {name for name, _ in seen}


def test_a_hypervisor_carries_no_database_library_and_no_http_server() -> None:
    assert not closure("agent") & NOT_ON_A_HYPERVISOR


def test_the_api_carries_no_libvirt() -> None:
    assert not closure("api") & NOT_IN_THE_API


def test_nobody_else_installs_our_top_level_packages() -> None:
    """`common` is a name that others might take, too."""
    owners = metadata.packages_distributions()
    for package in ("common", "api_service", "compute_agent"):
        assert set(owners[package]) == {"stillframe"}


@pytest.mark.parametrize(
    ("generator", "arguments", "sample"),
    [
        ("oslo-config-generator", "etc/generators/config.conf", "stillframe.conf.sample"),
        ("oslopolicy-sample-generator", "etc/generators/policy.conf", "policy.yaml.sample"),
    ],
)
def test_a_committed_sample_is_what_the_generator_writes(
    generator: str, arguments: str, sample: str, tmp_path: Path
) -> None:
    """Run `tox -e genconfig` and commit the result if this fails."""
    made = tmp_path / sample
    command = [
        str(Path(sys.executable).with_name(generator)),
        "--config-file",
        arguments,
        "--output-file",
        str(made),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert made.read_text() == (ROOT / "etc" / "stillframe" / sample).read_text()
