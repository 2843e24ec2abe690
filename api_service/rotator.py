# SPDX-License-Identifier: Apache-2.0
"""Sees that every backup that is done takes the place of older ones, once, whoever dies meanwhile.

The ledger says which are due. One process of the cloud sees to them at a time (a lease); it is
told when a backup is done, and looks by itself for what others left.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import random
import socket
import threading
import time
import uuid

from api_service.rotation import Rotation
from api_service.store.backups import BackupList
from api_service.store.engine import Database
from api_service.store.lease import Lease
from api_service.store.records import Job
from common import clock, context
from common.glance import ImageServiceUnavailable

LOG = logging.getLogger(__name__)

_LEASE_ROUNDS = 3
#: While Glance is away it is asked less and less often, down to this.
_WAIT_MAX_S = 300.0
#: Older ones stand until the next backup of their type; nothing is lost by it but room.
_GIVE_UP_AFTER = dt.timedelta(days=1)


class Rotator:
    """A service: a round whenever it is told of a backup, and every `interval_s`."""

    name = "rotator"

    def __init__(
        self, *, database: Database, backups: BackupList, rotation: Rotation, interval_s: float
    ) -> None:
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lease = Lease(database, "rotator", holder, interval_s * _LEASE_ROUNDS)
        self._backups = backups
        self._rotation = rotation
        self._interval_s = interval_s
        #: How long to wait before the next round, and (monotonic) until when.
        self._wait_s, self._waits_until = interval_s, 0.0
        self._told = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="rotator", daemon=True)

    def start(self) -> None:
        """Begin with a round at once: a crash may have left something."""
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """End after the round at hand."""
        self._stopping = True
        self._told.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def alive(self) -> bool:
        """Tell whether the thread runs (for the watchdog)."""
        return self._thread.is_alive()

    def poke(self) -> None:
        """A backup is done: look soon; returns at once."""
        self._told.set()

    def round(self) -> bool:
        """Look once at every backup that is due; False: one failed, and is tried again."""
        due = self._backups.due()
        # In no order: one that Glance chokes on must not always be the first.
        random.shuffle(due)
        succeeded = True
        for job in due:
            if self._stopping:
                break  # it stays due
            try:
                succeeded = self._settle(job) and succeeded
            except ImageServiceUnavailable as error:
                # The others would wait for Glance in vain.
                LOG.warning("%d rotations of backups are tried again: %s", len(due), error)
                return False
        return succeeded

    def _settle(self, job: Job) -> bool:
        """Settle one, and tell whether that succeeded; a defect must not keep the others waiting.

        Raises ImageServiceUnavailable.
        """
        try:
            with context.bound(context.from_wire(job.context, job.instance_uuid)):
                self._rotation.settle(job)
        except ImageServiceUnavailable:
            self._give_up_if_old(job)
            raise
        except Exception:
            LOG.exception("The rotation after job %s failed", job.id)
            self._give_up_if_old(job)
            return False
        return True

    def _give_up_if_old(self, job: Job) -> None:
        if clock.now() - (job.finished_at or job.created_at) > _GIVE_UP_AFTER:
            LOG.error(
                "The rotation after job %s is given up: the next %s backup removes what it left",
                job.id,
                job.backup_type,
            )
            self._backups.was_rotated(job.id)

    def _run(self) -> None:
        while not self._stopping:
            try:
                if self._lease.take() and time.monotonic() >= self._waits_until:
                    self._wait(succeeded=self.round())
            except Exception:
                # The database may be away; the next round tries again.
                LOG.exception("A round of rotations failed")
            if self._told.wait(self._interval_s):
                self._told.clear()
                self._waits_until = 0.0

    def _wait(self, *, succeeded: bool) -> None:
        self._wait_s = self._interval_s if succeeded else min(2 * self._wait_s, _WAIT_MAX_S)
        self._waits_until = 0.0 if succeeded else time.monotonic() + self._wait_s
