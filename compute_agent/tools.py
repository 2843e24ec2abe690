# SPDX-License-Identifier: Apache-2.0
"""What a pipeline works with: the host's services and the options, handed in by `cmd`."""

from __future__ import annotations

import dataclasses
import threading

from common.glance import ImageService
from compute_agent.capture.space import Reservations
from compute_agent.capture.workspace import Directories
from compute_agent.guest.connection import Hypervisor
from compute_agent.increments import Increments
from compute_agent.journal import Journal
from compute_agent.restore.restorer import Restorer
from compute_agent.sentinel import Sentinel
from compute_agent.stream.throttle import Throttle


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options that a snapshot obeys, as plain values."""

    method: str
    pause: str
    freeze: str
    freeze_timeout_s: float
    #: "root" or "all".
    disks: str
    #: Make and keep a checkpoint with each snapshot.
    checkpoints: bool
    #: Read slower while the guest's own writes take `latency_factor` times as long as usual.
    adaptive: bool
    latency_factor: float
    image_format: str
    #: "zlib" or "zstd"; None: images are not compressed.
    compression: str | None
    scratch_reserve_percent: int
    scratch_min_free_bytes: int
    upload_retries: int
    progress_log_interval_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """One host's services; all of them thread-safe."""

    hypervisor: Hypervisor
    images: ImageService
    journal: Journal
    increments: Increments
    directories: Directories
    throttle: Throttle
    sentinel: Sentinel
    restorer: Restorer
    settings: Settings
    reservations: Reservations = dataclasses.field(default_factory=Reservations)
    #: Held by whoever gives back what an ended job had to leave.
    giving_back: threading.Lock = dataclasses.field(default_factory=threading.Lock)
