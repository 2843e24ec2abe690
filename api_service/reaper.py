# SPDX-License-Identifier: Apache-2.0
"""Keeps the promise of every 202: sweeps up what a crash, a lost cast or a dead agent left.

One process of the cloud does it at a time (a lease). Each round casts again
what no agent has accepted, and ends what can no longer succeed: a job past its
deadline, one whose record was never made, one whose agent has been silent and
down for too long. Ending means: a recorded reason, no image, the instance free.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from api_service.agents import Agents
from api_service.dispatcher import Dispatcher
from api_service.images import ImageRecords
from api_service.store.engine import Database
from api_service.store.lease import Lease
from api_service.store.ledger import Ledger
from api_service.store.records import Job
from common import clock, context
from common.errors import StillframeError
from common.glance import ImageNotFound
from common.messages import disk_image_id, second_image_id
from common.states import JobState

LOG = logging.getLogger(__name__)

_LEASE_ROUNDS = 3


class Reaper:
    """A service: one round every `interval_s`."""

    name = "reaper"

    def __init__(
        self,
        *,
        database: Database,
        ledger: Ledger,
        agents: Agents,
        images: ImageRecords,
        dispatcher: Dispatcher,
        interval_s: float,
        silence_s: float,
    ) -> None:
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lease = Lease(database, "reaper", holder, interval_s * _LEASE_ROUNDS)
        self._ledger = ledger
        self._agents = agents
        self._images = images
        self._dispatcher = dispatcher
        self._interval = dt.timedelta(seconds=interval_s)
        self._silence = dt.timedelta(seconds=silence_s)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin with a round at once: a crash may have left something."""
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """End after the round at hand."""
        self._stopping.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def alive(self) -> bool:
        """Tell whether the thread runs (for the watchdog)."""
        return self._thread.is_alive()

    def round(self) -> None:
        """Look once at every open job, and at every image that an ended one left."""
        live_hosts = self._agents.live_hosts()
        for job in self._ledger.open_jobs():
            self._guard(job, lambda job: self._look_at(job, live_hosts))
        for job in self._ledger.to_discard():
            self._guard(job, self._discard)

    def _guard(self, job: Job, work: Callable[[Job], None]) -> None:
        """Work on one job; a defect met there must not keep the others waiting."""
        with context.bound(context.from_wire(job.context, job.instance_uuid)):
            try:
                work(job)
            except Exception:
                LOG.exception("The reaper failed on job %s", job.id)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._lease.take():
                    self.round()
            except Exception:
                # The database may be away; the next round tries again.
                LOG.exception("A round of the reaper failed")
            self._stopping.wait(self._interval.total_seconds())

    def _look_at(self, job: Job, live_hosts: frozenset[str]) -> None:
        now = clock.now()
        if job.cancel_asked_at and _is_older(job.cancel_asked_at, now, self._interval):
            self._dispatcher.poke(job.id)
        if job.state is JobState.PENDING:
            if now > job.deadline_at:
                self._end(job, "no compute agent accepted the job in time", "deadline_passed")
            elif job.castable and _is_older(job.cast_at or job.created_at, now, self._interval):
                # Only told: a cast may wait for the broker, this thread must not.
                self._dispatcher.poke(job.id)
            return
        heard_at = job.reported_at or job.accepted_at or job.created_at
        if job.host not in live_hosts and _is_older(heard_at, now, self._silence):
            self._end(
                job,
                "the compute agent of the instance's host has been down for too long",
                "agent_unavailable",
            )

    def _end(self, job: Job, reason: str, reason_code: str) -> None:
        if self._ledger.fail(job.id, reason, reason_code) is not None:
            LOG.error("Job %s ended in error: %s", job.id, reason)

    def _discard(self, job: Job) -> None:
        """Remove what is left of a failed job's image, now or (Glance is away) in a later round.

        An `active` one stays: a cast from elsewhere may have named an image that
        was never the job's, and Glance has every byte of one that was.
        """
        try:
            for image_id in (job.image_id, *self._made_besides(job)):
                self._discard_image(job, image_id)
        except StillframeError as error:
            LOG.warning("Image %s is removed later: %s", job.image_id, error)
            return
        self._ledger.was_discarded(job.id)

    def _discard_image(self, job: Job, image_id: str) -> None:
        try:
            if self._images.show(image_id).status != "active":
                self._images.delete(image_id)
                LOG.info("Removed image %s of job %s, which failed", image_id, job.id)
        except ImageNotFound:
            LOG.debug("Image %s is gone already", image_id)

    def _made_besides(self, job: Job) -> list[str]:
        """Return the images that the agent made itself: of other disks, or in place of one.

        A property can be anybody's; the ids, which follow from the root image's, cannot.
        """
        found = self._images.made_by("stillframe_job_id", job.id)
        disks = {image.properties.get("stillframe_disk", "") for image in found}
        firsts = [job.image_id, *(disk_image_id(job.image_id, disk) for disk in disks)]
        ours = {*firsts, *map(second_image_id, firsts)} - {job.image_id}
        return [image.id for image in found if image.id in ours]


def _is_older(then: dt.datetime, now: dt.datetime, age: dt.timedelta) -> bool:
    return now - then >= age
