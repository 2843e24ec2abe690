# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the sentinel: armed before a pause, disarmed after it.

The sentinel itself (`guest.resumer`) is a small process with a libvirt
connection of its own. It resumes an armed guest when its budget is over, and at
once when this end of the line closes, whatever happened to the agent.
"""

from __future__ import annotations

import json
import logging
import select
import subprocess
import sys
import threading
import time

from common.errors import CaptureFailed

LOG = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 5.0


class Sentinel:
    """One sentinel process, started anew if it has died; thread-safe."""

    name = "sentinel"

    def __init__(self, uri: str, *, budget_s: float) -> None:
        self._uri = uri
        self.budget_s = budget_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, so that the first pause need not wait for it."""
        with self._lock:
            self._ensure()

    def stop(self, deadline: float) -> None:
        """Close the line: what is armed is resumed, then the process ends."""
        with self._lock:
            process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            LOG.warning("The sentinel (pid %d) still resumes a guest", process.pid)

    def arm(
        self,
        instance_uuid: str,
        *,
        resumes: bool = True,
        thaws: bool = False,
        budget_s: float | None = None,
    ) -> None:
        """Have the sentinel watch over a guest that is about to be paused or frozen.

        It undoes only that: with `resumes` a pause, with `thaws` a freeze.
        Returns when it does. Raises CaptureFailed if there is no sentinel to be
        had: without one, nothing is paused.
        """
        line = json.dumps(
            {
                "arm": instance_uuid,
                "budget_s": budget_s or self.budget_s,
                "resumes": resumes,
                "thaws": thaws,
            }
        )
        with self._lock:
            for _ in range(2):
                if self._send(line) and self._answers(instance_uuid):
                    return
                LOG.warning("The sentinel does not answer; starting another")
                self._abandon()
        raise CaptureFailed(
            "the instance was not paused, because nothing would have watched over the pause"
        )

    def resumed(self, instance_uuid: str) -> None:
        """The guest runs again but may be frozen yet: whoever pauses it from now on means it."""
        self._say({"resumed": instance_uuid})

    def disarm(self, instance_uuid: str) -> None:
        """The guest runs again; a sentinel that is gone has nothing to forget."""
        self._say({"disarm": instance_uuid})

    def _say(self, message: dict[str, str]) -> None:
        with self._lock:
            if self._process is not None and not self._send(json.dumps(message)):
                self._abandon()

    def _ensure(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "compute_agent.guest.resumer", self._uri],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        return self._process

    def _send(self, line: str) -> bool:
        stdin = self._ensure().stdin
        try:
            if stdin is None:
                return False
            stdin.write(line.encode() + b"\n")
            stdin.flush()
        except OSError:
            return False
        return True

    def _answers(self, instance_uuid: str) -> bool:
        stdout = self._ensure().stdout
        if stdout is None:
            return False
        ready, _, _ = select.select([stdout], [], [], _ANSWER_TIMEOUT_S)
        return bool(ready) and stdout.readline().strip() == instance_uuid.encode()

    def _abandon(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            # It sees the line break off and ends, having resumed what it watched.
            process.stdin.close()
