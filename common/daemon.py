# SPDX-License-Identifier: Apache-2.0
"""The life of a daemon: start its services, obey signals, stop in order.

Both `cmd` modules build their services and hand them over. oslo.service is not
used for this: without forking, it ends the process on SIGHUP and skips all
clean-up on SIGTERM.

    SIGTERM, SIGINT   stop the services, last started first, within the time
                      given to each; a second one ends the process at once
    SIGHUP            `reload` is called (mutable options are read again);
                      where it raises, the daemon goes on as before
    SIGUSR2           every thread's stack goes to stderr

systemd is told READY, STOPPING, STATUS and, while `healthy` says so, WATCHDOG.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from common.errors import StillframeError

LOG = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: A signal that comes just before a wait begins does not end it: its handler runs after it.
_LOOK_S = 0.5


class Service(Protocol):
    """Something with threads of its own that a daemon runs."""

    #: What the log calls it.
    name: str

    def start(self) -> None:
        """Begin to work; raise if that is impossible."""

    def stop(self, deadline: float) -> None:
        """Stop; return before `deadline` (time.monotonic() seconds) whatever is left undone."""


class Daemon:
    """Runs services until a signal ends them.

    `reload` is called on SIGHUP, and changes nothing where it raises; `healthy`
    feeds systemd's watchdog and should look at the working loops, not merely return.
    """

    def __init__(
        self,
        name: str,
        services: Sequence[Service],
        *,
        stop_timeout_s: float,
        reload: Callable[[], None] = lambda: None,
        healthy: Callable[[], bool] = lambda: True,
    ) -> None:
        self._name = name
        self._services = services
        self._stop_timeout_s = stop_timeout_s
        self._reload = reload
        self._healthy = healthy
        # SimpleQueue.put may be called from a signal handler, Queue.put may not.
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopping = False
        self._failure: StillframeError | None = None

    def fail(self, why: StillframeError) -> None:
        """Stop as on SIGTERM, and have `run` raise `why`; any thread may call it."""
        self._failure = why
        self._signals.put(signal.SIGTERM)

    def run(self) -> int:
        """Start, wait for the end, stop; return the process's exit code.

        Raises what a service failed to start with, or what `fail` was given.
        """
        self._catch_signals()
        started: list[Service] = []
        try:
            for service in self._services:
                if self._stopping:
                    break
                service.start()
                started.append(service)
            else:
                notify("READY=1", f"STATUS={self._name} is serving")
                LOG.info("%s is ready", self._name)
            self._obey_until_told_to_stop()
        finally:
            self._stop(started)
        if self._failure is not None:
            raise self._failure
        LOG.info("%s has stopped", self._name)
        return EXIT_OK

    def _catch_signals(self) -> None:
        for number in (*_STOP_SIGNALS, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR2, all_threads=True)

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._stopping and number in _STOP_SIGNALS:
            os._exit(EXIT_FAILED)
        self._stopping = number in _STOP_SIGNALS or self._stopping
        self._signals.put(number)

    def _obey_until_told_to_stop(self) -> None:
        beat_s = _watchdog_interval_s()
        while True:
            try:
                number = self._signals.get(timeout=_LOOK_S if beat_s is None else beat_s)
            except queue.Empty:
                if beat_s is not None and self._healthy():
                    notify("WATCHDOG=1")
                continue
            if number in _STOP_SIGNALS:
                LOG.info("%s stops on %s", self._name, signal.Signals(number).name)
                return
            self._read_options_again()

    def _read_options_again(self) -> None:
        LOG.info("%s reads its mutable options again", self._name)
        try:
            self._reload()
        except (Exception, SystemExit) as error:  # oslo.config may end the process over a value
            LOG.error("%s: options not read; the old ones stay: %s", self._name, error)
        else:
            LOG.info("%s obeys them", self._name)

    def _stop(self, started: list[Service]) -> None:
        notify("STOPPING=1", f"STATUS={self._name} is stopping")
        deadline = time.monotonic() + self._stop_timeout_s
        for service in reversed(started):
            try:
                service.stop(deadline)
            except Exception:
                # The others must still get their turn.
                LOG.exception("%s did not stop cleanly", service.name)


def lead_process_group() -> None:
    """Be the first of a process group; call it before anything is sent.

    oslo.messaging's queue manager looks the first one up in /proc. A daemon that a script
    started, and that outlived the script, could neither call nor consume.
    """
    if os.getpgrp() != os.getpid():
        os.setpgrp()


def notify(*assignments: str) -> None:
    """Send sd_notify(3) assignments; does nothing when systemd does not listen."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            LOG.warning("systemd could not be notified: %s", error)


def _watchdog_interval_s() -> float | None:
    """Return half of what systemd allows between two WATCHDOG=1; None: it does not watch."""
    allowed_us = os.environ.get("WATCHDOG_USEC")
    return int(allowed_us) / 2e6 if allowed_us else None


def fail(message: str) -> int:
    """Say on stderr (and in the log) why a daemon cannot start; return its exit code."""
    LOG.critical("%s", message)
    sys.stderr.write(message + "\n")
    return EXIT_FAILED
