# SPDX-License-Identifier: Apache-2.0
"""Wall-clock time as the project writes it: UTC, always aware.

Durations and deadlines inside one process use `time.monotonic()`; only what is
stored or sent is wall-clock time.
"""

from __future__ import annotations

import datetime as dt
import time


def now() -> dt.datetime:
    """Return the current time, aware, in UTC."""
    return dt.datetime.now(dt.UTC)


def epoch_s() -> float:
    """Return the current wall-clock time in seconds since 1970, as messages carry it."""
    return time.time()


def from_epoch(seconds: float) -> dt.datetime:
    """Return the aware UTC time of a message's epoch seconds."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
