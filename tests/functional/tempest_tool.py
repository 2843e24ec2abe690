# SPDX-License-Identifier: Apache-2.0
"""Tempest's own compute tests, unmodified, run as a process against a cloud with a Keystone.

Which ones: all below `tempest.api.compute` but those of tempest_left_out.yaml.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import openstack as sdk
import openstack.config as sdk_config
import subunit
import tempest
import testtools
import yaml

from tools.stack.cloud import Cloud
from tools.stack.keystone import REGION, Keystone

PACKAGE = "tempest.api.compute."
LEFT_OUT = Path(__file__).with_name("tempest_left_out.yaml")
#: What tempest says of a class whose versions lie outside of the configured ones.
OUT_OF_RANGE = "The microversion range"
#: HLT and a jump back to it, which the BIOS takes for bootable.
_BOOT_SECTOR = b"\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"
_DISK_BYTES = 1 << 20
#: Major and minor.
Version = tuple[int, ...]

_LIST_TIMEOUT_S = 60
_CONFIG = """\
[DEFAULT]
log_file = {here}/tempest.log
[oslo_concurrency]
lock_path = {here}/locks
[auth]
use_dynamic_credentials = false
test_accounts_file = {here}/accounts.yaml
create_isolated_networks = false
[identity]
uri_v3 = {keystone}
auth_version = v3
region = {region}
[service_available]
cinder = false
# It is not, but tempest does not even try classes that would like a network made for them.
neutron = true
swift = false
horizon = false
[validation]
run_validation = false
[enforce_scope]
nova = true
[compute]
image_ref = {image}
image_ref_alt = {other_image}
flavor_ref = {flavor}
flavor_ref_alt = {other_flavor}
build_timeout = 60
{versions}
[compute-feature-enabled]
console_output = false
enable_instance_password = false
personality = false
rescue = false
resize = false
shelve = false
suspend = false
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What tempest finds in the cloud."""

    keystone: str
    image: str
    other_image: str
    flavor: str
    other_flavor: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one test ended: "success", "skip" or "fail", and what it said."""

    status: str
    said: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A module, class or test that is not run, and why."""

    name: str
    reason: str
    #: The oldest `min_microversion` with which it is left out; None: always.
    since: Version | None

    def covers(self, test: str) -> bool:
        """Say whether this test is meant."""
        return f"{test}.".startswith(f"{self.name}.")


def left_out() -> list[LeftOut]:
    """Return what tempest_left_out.yaml says."""
    return [
        LeftOut(
            name=PACKAGE + name,
            reason=group["reason"],
            since=_version(group["from"]) if "from" in group else None,
        )
        for group in yaml.safe_load(LEFT_OUT.read_text())
        for name in group["tests"]
    ]


def chosen(tests: Iterable[str], min_microversion: str | None) -> list[str]:
    """Return those of the tests that are run with that `min_microversion`."""
    lowest = _version(min_microversion) if min_microversion else (2, 1)
    out = [one for one in left_out() if one.since is None or one.since <= lowest]
    return [test for test in tests if not any(one.covers(test) for one in out)]


def all_tests(directory: Path) -> list[str]:
    """Return the names of all of tempest's compute tests."""
    top = Path(tempest.__file__).parents[1]
    where = ["-s", str(top / PACKAGE.replace(".", "/")), "-t", str(top)]
    (directory / "tempest.conf").write_text("")
    listed = subprocess.run(
        [sys.executable, "-m", "testtools.run", "discover", "--list", *where],
        env=_environment(directory),
        check=True,
        capture_output=True,
        text=True,
        timeout=_LIST_TIMEOUT_S,
    )
    ids = [line for line in listed.stdout.splitlines() if line.startswith(PACKAGE)]
    return sorted(_name(test_id) for test_id in ids)


class Run:
    """One process of tempest; `min_microversion` None leaves each test its own, from 2.1 on."""

    def __init__(
        self,
        directory: Path,
        target: Target,
        accounts: list[dict[str, Any]],
        tests: Iterable[str],
        *,
        min_microversion: str | None,
        max_microversion: str,
    ) -> None:
        (directory / "accounts.yaml").write_text(yaml.safe_dump(accounts))
        versions = {"min_microversion": min_microversion, "max_microversion": max_microversion}
        (directory / "tempest.conf").write_text(
            _CONFIG.format(
                here=directory,
                region=REGION,
                versions="\n".join(f"{key} = {value}" for key, value in versions.items() if value),
                **dataclasses.asdict(target),
            )
        )
        self._stream = directory / "subunit"
        with self._stream.open("wb") as stream, (directory / "stderr").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "subunit.run", *tests],
                env=_environment(directory),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=errors,
            )

    def outcomes(self, timeout_s: float) -> Mapping[str, Outcome]:
        """Wait for its end; return what became of each test.

        What fails or skips a whole class is there by the name `setUpClass (CLASS)`.
        Raises subprocess.TimeoutExpired.
        """
        self._process.wait(timeout_s)
        found: dict[str, Outcome] = {}

        def take(test: dict[str, Any]) -> None:
            if test["status"] == "exists":
                return  # Only listed; what became of it is told by its own name or its class's.
            said = "\n".join(detail.as_text() for detail in test["details"].values())
            found[_name(test["id"])] = Outcome(status=test["status"], said=said)

        result = testtools.StreamToDict(take)
        result.startTestRun()
        with self._stream.open("rb") as stream:
            subunit.ByteStreamToStreamResult(stream, non_subunit_name="stdout").run(result)
        result.stopTestRun()
        return found

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def make_target(cloud: Cloud, directory: Path) -> Target:
    """Put into a cloud the images that tempest needs there, public ones; return what it finds.

    Nothing here looks into a guest, so what the images boot only waits: dozens
    of guests then cost what the API does with them, and no processor's time.
    """
    assert isinstance(cloud.identity, Keystone)
    raw, disk = directory / "waits.raw", directory / "waits.qcow2"
    raw.write_bytes(_BOOT_SECTOR.ljust(_DISK_BYTES, b"\0"))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)]
    subprocess.run(convert, check=True, timeout=60)
    with _administrator(cloud) as admin:
        first, second = (
            admin.image.create_image(
                name,
                filename=str(disk),
                disk_format="qcow2",
                container_format="bare",
                visibility="public",
                wait=True,
            )
            for name in ("tempest", "tempest-alt")
        )
    return Target(
        keystone=cloud.identity.url,
        image=first.id,
        other_image=second.id,
        flavor="nano",
        other_flavor="micro",
    )


def make_accounts(cloud: Cloud, name: str) -> list[dict[str, Any]]:
    """Make two projects with a member and a reader each; return tempest's list of accounts.

    They are made once for all tests of a run: tempest would make and remove
    some for each class, which takes longer than the tests.
    """
    with _administrator(cloud) as admin:
        roles = {role.name: role.id for role in admin.identity.roles()}

        def account(project: Any, role: str, as_tempest: str) -> dict[str, Any]:
            user_name = f"{project.name}-{role}"
            user = admin.identity.create_user(
                name=user_name, password=f"secret-{user_name}", domain_id="default"
            )
            admin.identity.assign_project_role_to_user(project, user, roles[role])
            return _account(user_name, project.name, as_tempest)

        accounts = [_account("admin", "admin", "admin")]
        # Whoever asks for the other project takes the first account that is free.
        for prefix in ("alt_", ""):
            project = admin.identity.create_project(
                name=f"tempest-{prefix}{name}", domain_id="default"
            )
            accounts += [account(project, role, prefix + role) for role in ("member", "reader")]
    return accounts


def _account(user: str, project: str, role: str) -> dict[str, Any]:
    return {
        "username": user,
        "project_name": project,
        "password": f"secret-{user}",
        "roles": [role],
    }


@contextlib.contextmanager
def _administrator(cloud: Cloud) -> Iterator[sdk.connection.Connection]:
    config = sdk_config.OpenStackConfig(config_files=[str(cloud.clouds_file)], load_envvars=False)
    connection = sdk.connection.Connection(config=config.get_one("stillframe-admin"))
    try:
        yield connection
    finally:
        connection.close()


def _version(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))


def _environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "TEMPEST_CONFIG_DIR": str(directory), "TEMPEST_CONFIG": "tempest.conf"}


def _name(test_id: str) -> str:
    """Return a test's name without its attributes."""
    return test_id.partition("[")[0]
