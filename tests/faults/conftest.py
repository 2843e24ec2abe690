# SPDX-License-Identifier: Apache-2.0
"""The functional tests' cloud, and how long and how random a run of faults is."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rebuilds import Rebuilt, two_images
from tests.functional.conftest import (  # noqa: F401 # fixtures
    _base_image_is_never_touched,
    accelerator,
    agent_options,
    base_image,
    cloud,
    glance_venv,
    guest_image,
    make_cloud,
    meddler,
    new_guest,
    running_guest,
)
from tools.stack.cloud import Cloud


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the options of `tox -e faults -- ...`."""
    parser.addoption("--kills", type=int, default=15, help="how many faults a run has")
    parser.addoption("--others", type=int, default=1, help="how many hit other kinds of job, each")
    parser.addoption("--seed", type=int, default=None, help="repeat the run of this seed")
    parser.addoption("--fault", action="append", help="only this one (may come several times)")
    parser.addoption("--table", type=Path, default=None, help="write what came of it, as Markdown")


@pytest.fixture(scope="session")
def extra_config() -> str:
    """Slow enough for a fault to hit an upload; an agent that stays away is given up soon."""
    return "bandwidth_limit = 25\n[api]\njob_silence_timeout = 10\n[capture]"


@pytest.fixture(scope="session")
def rebuilt(cloud: Cloud) -> Iterator[Rebuilt]:  # noqa: F811 # the fixture
    """A guest that is rebuilt to and fro between two images."""
    with two_images(cloud) as rebuilt:
        yield rebuilt


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of the run's dice; told, so that it can be repeated."""
    given: int | None = request.config.getoption("--seed")
    return given if given is not None else time.time_ns() % 10**6


@pytest.fixture
def dice(seed: int) -> random.Random:
    """What decides which fault comes when."""
    return random.Random(seed)
