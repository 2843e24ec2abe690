# SPDX-License-Identifier: Apache-2.0
"""What a pipeline works with: the host's services and the options, handed in by `cmd`."""

from __future__ import annotations

import dataclasses

from common.glance import ImageService
from compute_agent.capture.workspace import Directories
from compute_agent.guest.connection import Hypervisor
from compute_agent.journal import Journal
from compute_agent.sentinel import Sentinel
from compute_agent.stream.throttle import Throttle


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options that a snapshot obeys, as plain values."""

    method: str
    pause: str
    image_format: str
    scratch_reserve_percent: int
    upload_retries: int
    progress_log_interval_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """One host's services; all of them thread-safe."""

    hypervisor: Hypervisor
    images: ImageService
    journal: Journal
    directories: Directories
    throttle: Throttle
    sentinel: Sentinel
    settings: Settings
