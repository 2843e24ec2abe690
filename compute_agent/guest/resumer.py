# SPDX-License-Identifier: Apache-2.0
"""The sentinel's process: resumes and thaws a guest if the agent dies or is late.

    python -m compute_agent.guest.resumer URI

Started by `compute_agent.sentinel` in a session of its own, so that it outlives
a kill of the agent's process group. It reads one JSON object a line:

    {"arm": DOMAIN_UUID, "budget_s": SECONDS, "resumes": BOOL, "thaws": BOOL}
                                        answered by the same UUID
    {"resumed": DOMAIN_UUID}            it runs again, and may be frozen yet
    {"disarm": DOMAIN_UUID}

A domain that is not disarmed within its budget is resumed, with `resumes`, and
its file systems are thawed, with `thaws`; when the line breaks off (the agent is
gone, however it went), that is done for every armed domain at once, and the
process ends. It has a libvirt connection of its own and imports nothing that the
agent could break.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

import libvirt

LOG = logging.getLogger("compute_agent.sentinel")

_READ_BYTES = 65536
_RETRY_S = 0.2
#: After the agent's end, how long to try to reach libvirt for a guest.
_PATIENCE_S = 600.0
_THAW_TIMEOUT_S = 5
#: The guest is gone, or off: it is neither paused nor frozen.
_NOTHING_TO_DO = frozenset({libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID})


def main() -> int:
    """Serve until the line breaks off; return the process's exit code."""
    logging.basicConfig(
        format="%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(name)s [-] %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=logging.INFO,
    )
    # Only the end of the line ends us: whoever stops the agent must not stop us first.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    libvirt.registerErrorHandler(lambda *_: None, None)
    return Resumer(sys.argv[1]).serve()


class Resumer:
    """Keeps each armed domain's deadline and acts on it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: libvirt.virConnect | None = None
        #: Armed domains and the time (time.monotonic()) at which each is resumed.
        self._deadlines: dict[str, float] = {}
        #: Armed domains that the agent may have paused: another's pause is not ours to end.
        self._paused: set[str] = set()
        #: Armed domains whose file systems may be frozen.
        self._frozen: set[str] = set()
        #: How often each domain was armed or disarmed: what a rescue began for may be over.
        self._turns: collections.Counter[str] = collections.Counter()
        self._rest = b""

    def serve(self) -> int:
        """Obey the line until it ends, then resume whatever is armed."""
        self._connect()
        while True:
            ready, _, _ = select.select([sys.stdin.fileno()], [], [], self._patience_s())
            if ready:
                data = os.read(sys.stdin.fileno(), _READ_BYTES)
                if not data:
                    break
                self._take(data)
            self._resume_late()
        rescues = [
            threading.Thread(target=self._rescue, args=(domain, self._turns[domain]))
            for domain in self._deadlines
        ]
        for domain, rescue in zip(self._deadlines, rescues, strict=True):
            LOG.warning("[instance: %s] The agent is gone inside a pause", domain)
            rescue.start()
        for rescue in rescues:
            rescue.join()
        return 0

    def _patience_s(self) -> float | None:
        if not self._deadlines:
            return None
        return max(0.0, min(self._deadlines.values()) - time.monotonic())

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "arm" in message:
                self._arm(**message)
            elif "disarm" in message:
                self._disarm(message["disarm"])
            else:
                self._paused.discard(message["resumed"])

    def _arm(self, arm: str, budget_s: float, *, resumes: bool = True, thaws: bool = False) -> None:
        self._turns[arm] += 1
        self._deadlines[arm] = time.monotonic() + budget_s
        (self._paused.add if resumes else self._paused.discard)(arm)
        if thaws:
            self._frozen.add(arm)
        if self._connection is None or not self._connection.isAlive():
            self._connect()
        sys.stdout.write(arm + "\n")
        sys.stdout.flush()

    def _disarm(self, domain: str) -> None:
        self._turns[domain] += 1
        self._deadlines.pop(domain, None)
        self._paused.discard(domain)
        self._frozen.discard(domain)

    def _resume_late(self) -> None:
        now = time.monotonic()
        for domain in [one for one, due in self._deadlines.items() if due <= now]:
            del self._deadlines[domain]
            LOG.warning("[instance: %s] Paused or frozen for longer than its budget", domain)
            # In a thread: a guest agent that does not answer must not hold up other guests.
            turn = self._turns[domain]
            threading.Thread(target=self._rescue, args=(domain, turn), daemon=True).start()

    def _rescue(self, domain: str, turn: int) -> None:
        """Resume, then thaw, each until it is done, the patience is over or the agent speaks."""
        deadline = time.monotonic() + _PATIENCE_S
        for way_out in (self._resume, self._thaw):
            while self._turns[domain] == turn and not self._done(way_out, domain):
                if time.monotonic() > deadline:
                    return
                time.sleep(_RETRY_S)

    def _done(self, way_out: Callable[[libvirt.virDomain, str], None], domain: str) -> bool:
        """Try it; True when it worked, or there is nothing (left) to do."""
        try:
            if self._connection is None or not self._connection.isAlive():
                self._connect()
            if self._connection is None:
                return False
            way_out(self._connection.lookupByUUIDString(domain), domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _NOTHING_TO_DO:
                return True
            LOG.error("[instance: %s] Not rescued yet: %s", domain, error)
            return False
        return True

    def _resume(self, found: libvirt.virDomain, domain: str) -> None:
        if domain in self._paused and found.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            found.resume()
            LOG.warning("[instance: %s] The sentinel resumed the guest", domain)

    def _thaw(self, found: libvirt.virDomain, domain: str) -> None:
        if domain in self._frozen:
            found.agentSetResponseTimeout(_THAW_TIMEOUT_S)
            thawed = found.fsThaw()
            self._frozen.discard(domain)
            LOG.warning("[instance: %s] The sentinel thawed %d file systems", domain, thawed)

    def _connect(self) -> None:
        try:
            self._connection = libvirt.open(self._uri)
        except libvirt.libvirtError as error:
            LOG.error("libvirt at %s: %s", self._uri, error)
            self._connection = None


if __name__ == "__main__":
    sys.exit(main())
