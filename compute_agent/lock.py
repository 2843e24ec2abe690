# SPDX-License-Identifier: Apache-2.0
"""A directory that one agent alone may use, held for as long as its process lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


class Held(Exception):
    """Another process holds it; `str` of this is what that one says of itself."""


def hold(path: Path, host: str) -> IO[str]:
    """Lock a file, and write there who has it; the lock goes with the process, however it ends.

    Raises Held, or OSError where the file system has no locks.
    """
    holder = path.open("a+")
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder.seek(0)
        with holder:
            raise Held(holder.read().strip() or "unknown") from None
    except OSError:
        holder.close()
        raise
    holder.truncate(0)
    holder.write(f"pid {os.getpid()}, host {host}")
    holder.flush()
    return holder
