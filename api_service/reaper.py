# SPDX-License-Identifier: Apache-2.0
"""Keeps the promise of every 202: sweeps up what a crash, a lost cast or a dead agent left.

One process of the cloud does it at a time (a lease). Each round casts again
what no agent has accepted, and ends what can no longer succeed: a job past its
deadline, one whose record was never made, one whose agent has been silent and
down for too long or does not know it any more. Ending means: a recorded reason,
no image, the instance free.
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
from collections.abc import Callable, Iterator, Mapping

from api_service.agents import Agents, has_lost
from api_service.dispatcher import Dispatcher
from api_service.images import ImageRecords
from api_service.store.engine import Database
from api_service.store.lease import Lease
from api_service.store.ledger import Ledger
from api_service.store.records import Agent, Job
from common import clock, context
from common.errors import StillframeError
from common.glance import Image, ImageNotFound, ImageServiceUnavailable
from common.messages import disk_image_id, second_image_id
from common.states import JobState

LOG = logging.getLogger(__name__)

_LEASE_ROUNDS = 3
#: What agents said while no API ran waits in the queue: so long no silence means anything.
_GRACE_S = 30.0
#: A wall clock that has moved by more than that beside the monotonic one was set.
_CLOCK_SET_S = 5.0

_WITH_DATA = frozenset({"active", "deactivated"})
_GONE = "the compute agent of the instance's host has been down for too long"
_LOST = "the compute agent of the instance's host has lost the job; ask again"


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
        is_consuming: Callable[[], bool] = lambda: True,
        grace_s: float = _GRACE_S,
    ) -> None:
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lease = Lease(database, "reaper", holder, interval_s * _LEASE_ROUNDS)
        self._ledger = ledger
        self._agents = agents
        self._images = images
        self._dispatcher = dispatcher
        self._interval = dt.timedelta(seconds=interval_s)
        self._silence = dt.timedelta(seconds=silence_s)
        self._is_consuming = is_consuming
        self._grace_s = grace_s
        self._judges_from = time.monotonic() + grace_s
        self._judges = False
        self._ahead_s = clock.epoch_s() - time.monotonic()
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
        live, judges = self._agents.live(), self._may_judge()
        for job in self._ledger.open_jobs():
            self._guard(job, lambda job: self._look_at(job, live, judges))
        ended = self._ledger.to_discard()
        # In no order: an image that Glance chokes on must not always be the first.
        random.shuffle(ended)
        try:
            for job in ended:
                self._guard(job, self._discard)
        except ImageServiceUnavailable as error:
            LOG.warning("The images of %d jobs are seen to later: %s", len(ended), error)

    def _guard(self, job: Job, work: Callable[[Job], None]) -> None:
        """Work on one job; a defect met there must not keep the others waiting.

        Raises ImageServiceUnavailable: the others would wait for Glance in vain.
        """
        try:
            with context.bound(context.from_wire(job.context, job.instance_uuid)):
                work(job)
        except ImageServiceUnavailable:
            raise
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

    def _may_judge(self) -> bool:
        """Tell whether the reports that waited for this process's start have been read.

        After our clock was set, wait anew: until they report again, all agents seem silent.
        """
        ahead_s = clock.epoch_s() - time.monotonic()
        if abs(ahead_s - self._ahead_s) > _CLOCK_SET_S:
            LOG.warning("The clock of this host was set by %+.0f s", ahead_s - self._ahead_s)
            self._judges, self._judges_from = False, time.monotonic() + self._grace_s
        self._ahead_s = ahead_s
        if not self._judges:
            if not self._is_consuming():
                self._judges_from = time.monotonic() + self._grace_s
            self._judges = time.monotonic() >= self._judges_from
        return self._judges

    def _look_at(self, job: Job, live: Mapping[str, Agent], judges: bool) -> None:
        self._tell_again(job)
        if job.state is JobState.PENDING:
            # One that was cast may have been accepted, too.
            if clock.now() > job.deadline_at and (judges or job.cast_at is None):
                self._end(job, "no compute agent accepted the job in time", "deadline_passed")
            return
        heard_at, agent = job.reported_at or job.accepted_at or job.created_at, live.get(job.host)
        if not judges:
            return
        if agent is None and _is_older(heard_at, self._silence):
            self._end(job, _GONE, "agent_unavailable")
        elif agent is not None and has_lost(agent, job):
            self._end(job, _LOST, "agent_lost_job")

    def _tell_again(self, job: Job) -> None:
        """Have what the agent does not know cast; only told: this thread must not wait for it."""
        if job.cancel_asked_at and _is_older(job.cancel_asked_at, self._interval):
            self._dispatcher.poke(job.id)
        if job.limit_due:
            self._dispatcher.poke_limit(job.id)
        is_waiting = job.state is JobState.PENDING and job.castable
        in_time = clock.now() <= job.deadline_at
        if is_waiting and in_time and _is_older(job.cast_at or job.created_at, self._interval):
            self._dispatcher.poke(job.id)

    def _end(self, job: Job, reason: str, reason_code: str) -> None:
        if self._ledger.fail(job.id, reason, reason_code) is not None:
            LOG.error("Job %s ended in error: %s", job.id, reason)

    def _discard(self, job: Job) -> None:
        """Remove what is left of a failed job's images, now or (Glance is away) in a later round.

        Raises ImageServiceUnavailable.
        """
        try:
            kept = [self._discard_image(job, image_id) for image_id in self._images_of(job)]
        except ImageServiceUnavailable:
            raise
        except StillframeError as error:
            LOG.warning("Image %s is removed later: %s", job.image_id, error)
            return
        self._ledger.was_discarded(job.id, kept=any(kept))

    def _discard_image(self, job: Job, image_id: str) -> bool:
        """Remove an image, unless it is one to keep; tell whether it was kept."""
        try:
            kept = _is_kept(self._images.look(image_id), job)
        except ImageNotFound:
            LOG.debug("Image %s is gone already", image_id)
            return False
        if not kept:
            self._images.delete(image_id)
            LOG.info("Removed image %s of job %s, which failed", image_id, job.id)
        return kept

    def _images_of(self, job: Job) -> Iterator[str]:
        """Yield the job's image, and those that the agent made: of disks, or in place of one.

        A property can be anybody's; the ids, which follow from the root image's, cannot.
        """
        yield from (job.image_id, second_image_id(job.image_id))
        found = self._images.made_by("stillframe_job_id", job.id)
        disks = {image.properties.get("stillframe_disk", "") for image in found}
        firsts = {disk_image_id(job.image_id, disk) for disk in disks}
        ours = {*firsts, *map(second_image_id, firsts)}
        yield from (image.id for image in found if image.id in ours)


def _is_kept(image: Image, job: Job) -> bool:
    """Tell whether an image has all its data, and nothing says that this job made it unverified.

    A cast from elsewhere may have named an image that was never the job's; one
    that was has every byte right only once its hash stands on it.
    """
    is_ours = image.properties.get("stillframe_job_id") == job.id
    return image.status in _WITH_DATA and not (
        is_ours and "stillframe_sha512" not in image.properties
    )


def _is_older(then: dt.datetime, age: dt.timedelta) -> bool:
    return clock.now() - then >= age
