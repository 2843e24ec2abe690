# SPDX-License-Identifier: Apache-2.0
"""The real parts that functional tests use; each starts once, and is stopped by process id.

`cloud` is the whole with a broker of its own process; `new_guest` boots guests in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.meddler import Meddler
from tools.stack import keystone as keystone_tools
from tools.stack import prepare
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest, GuestWish
from tools.stack.prepare import CACHE, ROOT, alone

__all__ = ["CACHE", "ROOT", "alone"]  # for the tests

meddlers: dict[Path, Meddler] = {}
SCRATCH_MIB = 1024
#: Of the cloud with a Keystone: what its servers boot hears no power button, and nobody waits
#: there for a dead agent to be taken for one.
_FOR_MANY_SMALL_SERVERS = """\
[DEFAULT]
shutdown_timeout = 1
service_down_time = 60
[spawn]
flavors = nano:1/64/0,micro:1/96/0
[rebuild]
running_time = 0.5
"""
_numbers = itertools.count(1)


def python() -> str:
    """Return the interpreter that the tests run in, and that has the project."""
    return sys.executable


@pytest.fixture(scope="session")
def guest_image() -> Path:
    """The test guest: kernel, initrd and a small disk."""
    return prepare.guest_image()


@pytest.fixture(scope="session")
def accelerator() -> str:
    """KVM where it really works, software emulation elsewhere."""
    return prepare.accelerator()


@pytest.fixture(scope="session")
def glance_venv() -> Path:
    """PyPI's Glance."""
    return prepare.glance_venv()


@pytest.fixture(scope="session")
def extra_config() -> str:
    """Lines for [capture]; a test that acts in the middle of an upload asks for a slow one."""
    return ""


@pytest.fixture(scope="session")
def make_cloud(
    tmp_path_factory: pytest.TempPathFactory,
    guest_image: Path,
    accelerator: str,
    glance_venv: Path,
    extra_config: str,
) -> Callable[..., Cloud]:
    """Make a cloud that is not started yet, also for a module that needs one of its own."""

    def make(name: str, **parts: Any) -> Cloud:
        parts = {"extra_config": extra_config, **parts}
        return Cloud(
            tmp_path_factory.mktemp(name),
            cache=CACHE,
            bin_directory=Path(sys.executable).parent,
            image=guest_image,
            accelerator=accelerator,
            **parts,
        )

    return make


@contextlib.contextmanager
def started(cloud: Cloud) -> Iterator[Cloud]:
    """Start all of a cloud, and stop it afterwards."""
    try:
        cloud.start_parts()
        cloud.start_daemons()
        yield cloud
    finally:
        cloud.stop()


@pytest.fixture(scope="session")
def cloud(make_cloud: Callable[..., Cloud]) -> Iterator[Cloud]:
    """Broker, Glance, libvirt and both daemons as processes."""
    cloud = make_cloud("cloud")
    with small_file_system(cloud.directory / "scratch"), Meddler(cloud.glance.port) as meddler:
        cloud.glance_endpoint = meddler.endpoint
        meddlers[cloud.directory] = meddler
        with started(cloud):
            yield cloud


@contextlib.contextmanager
def connected_to(cloud: Cloud, transport_url: str) -> Iterator[None]:
    """Restart the daemons of a cloud with another way to a broker, and at the end with its own."""
    own = cloud.transport_url
    try:
        _connect(cloud, transport_url)
        yield
    finally:
        _connect(cloud, own)


def _connect(cloud: Cloud, transport_url: str) -> None:
    cloud.transport_url = transport_url
    cloud.agent.stop()
    cloud.api.stop()
    cloud.start_daemons()


@pytest.fixture(scope="session")
def keystone_cloud(make_cloud: Callable[..., Cloud]) -> Iterator[Callable[[int], Cloud]]:
    """One cloud with a Keystone; each caller says for how many seconds a token shall be good."""
    prepare.keystone_venv()
    clouds: list[Cloud] = []

    def with_tokens_for(life_s: int) -> Cloud:
        if not clouds:
            cloud = make_cloud(
                "cloud-with-keystone", token_life_s=life_s, extra_config=_FOR_MANY_SMALL_SERVERS
            )
            clouds.append(stack.enter_context(started(cloud)))
        give_tokens_for(clouds[0], life_s)
        return clouds[0]

    with contextlib.ExitStack() as stack:
        yield with_tokens_for


def give_tokens_for(cloud: Cloud, life_s: int) -> None:
    """Change how long tokens are good, also those that the daemons work with."""
    keystone = cloud.identity
    assert isinstance(keystone, keystone_tools.Keystone)
    if keystone.token_life_s != life_s:
        cloud.agent.stop()
        cloud.api.stop()
        keystone.give_tokens_for(life_s)
        cloud.start_daemons()


@pytest.fixture(scope="session")
def base_image(guest_image: Path) -> Iterator[Path]:
    """The image that the guests' disks lie on; at the end it has the same bytes."""
    image = guest_image / "disk.qcow2"
    before = _sha256(image)
    yield image
    assert _sha256(image) == before


@pytest.fixture(autouse=True)
def _base_image_is_never_touched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Other instances may share it: whatever a test does, nobody writes to it."""
    if "cloud" not in request.fixturenames:
        yield
        return
    image: Path = request.getfixturevalue("base_image")
    before = _last_written(image)
    yield
    assert _last_written(image) == before


def _last_written(path: Path) -> tuple[int, int, int]:
    """Return what each write to a file changes: it is much cheaper than a hash."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def small_file_system(path: Path, size_mib: int = SCRATCH_MIB) -> Iterator[None]:
    """A tmpfs that a test can fill without harm to anybody else."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(path)], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def meddler(cloud: Cloud) -> Iterator[Meddler]:
    """What stands between the daemons and Glance; passes everything on after the test."""
    meddler = meddlers[cloud.directory]
    yield meddler
    meddler.behave()


@pytest.fixture
def agent_options(cloud: Cloud) -> Iterator[Callable[..., None]]:
    """Give the agent other mutable options for one test: lines of [capture]."""
    yield cloud.reconfigure_agent
    cloud.reconfigure_agent()


@pytest.fixture
def new_guest(cloud: Cloud) -> Iterator[Callable[..., Guest]]:
    """Boot guests (`start=False`: define only); they are removed afterwards."""
    guests: list[Guest] = []

    def make(*, start: bool = True, **wish: Any) -> Guest:
        guest = cloud.guest(GuestWish(name=f"test-{next(_numbers)}", **wish))
        guests.append(guest)
        guest.define()
        if start:
            guest.start()
        cloud.wait_for_instance(guest, "ACTIVE" if start else "SHUTOFF")
        return guest

    yield make
    for guest in guests:
        guest.remove()


@contextlib.contextmanager
def booted(cloud: Cloud, **wish: Any) -> Iterator[Guest]:
    """Boot a guest that several tests use, each of which leaves it as it was."""
    guest = cloud.guest(GuestWish(name=f"test-{next(_numbers)}", **wish))
    guest.define()
    try:
        guest.start()
        cloud.wait_for_instance(guest)
        yield guest
    finally:
        guest.remove()


@pytest.fixture(scope="session")
def running_guest(cloud: Cloud) -> Iterator[Guest]:
    """One booted, writing guest for the tests that leave it as it was."""
    with booted(cloud) as guest:
        yield guest
