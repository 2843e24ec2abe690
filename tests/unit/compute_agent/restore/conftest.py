# SPDX-License-Identifier: Apache-2.0
"""A shelf of images, a job, and the directories that it may write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from common.glance import ImageService
from common.states import TaskState
from compute_agent.restore.model import ProvenImage
from compute_agent.restore.restorer import Restorer
from compute_agent.stream.throttle import Throttle
from tests.unit.compute_agent.restore.shelf import (
    IMAGE,
    SETTINGS,
    SIZE,
    WRITES,
    Errand,
    Shelf,
    qcow2,
)

Prove = Callable[..., ProvenImage]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def errand() -> Errand:
    return Errand()


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Where the job may put what it fetches."""
    path = tmp_path / "room"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """Where disks lie."""
    path = tmp_path / "disks"
    path.mkdir()
    return path


@pytest.fixture
def restorer(shelf: Shelf) -> Restorer:
    return Restorer(cast(ImageService, shelf), Throttle(0), SETTINGS)


@pytest.fixture
def prove(restorer: Restorer, errand: Errand, room: Path) -> Prove:
    """Prove the image on the shelf."""

    def prove(image_id: str = IMAGE, *, most_bytes: int = SIZE) -> ProvenImage:
        return restorer.prove(
            errand,
            image_id,
            room,
            most_bytes=most_bytes,
            task_state=TaskState.REBUILD_BLOCK_DEVICE_MAPPING,
        )

    return prove


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return qcow2(tmp_path / "sample", *WRITES)
