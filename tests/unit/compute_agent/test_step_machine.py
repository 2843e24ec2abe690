# SPDX-License-Identifier: Apache-2.0
"""Snapshots of one guest, one after the other, any of which may go wrong anywhere.

Whatever the steps call may fail before or after it has had its effect, once or
until it is healed; the job may be stopped, and the agent killed, at any such
call. After each job: the guest runs (or the sentinel still watches it), its
capture was ended or is marked in the journal, its image is published or gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.errors import CaptureFailed, JobCancelled, JobInterrupted, StillframeError
from common.messages import InstanceRef, SnapshotRequest
from common.states import JobState, PowerState
from compute_agent import release, watch
from compute_agent.capture import make
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.publication import Publication
from compute_agent.snapshot import Pipeline
from tests.unit.compute_agent.conftest import RecordedReports
from tests.unit.compute_agent.stage import SETTINGS, Stage, tools_of

GUEST = str(uuid.UUID(int=1))
#: Whatever the pipeline asks of the world, in no order.
CALLS = (
    *("find", "require_queued", "prepare", "arm", "suspend", "begin", "resume", "disarm"),
    *("describe", "stream", "verify", "publish", "end", "discard"),
)


class Killed(BaseException):
    """The agent is gone: nothing catches it, and nothing more is done."""


class World(Stage):
    """Guest, sentinel, capture and image, with what each call makes of them."""

    uuid = GUEST

    def __init__(self) -> None:
        super().__init__()
        self.paused = self.armed = self.captured = False
        self.image = "none"
        self.broken: dict[str, bool] = {}
        self.once: set[str] = set()
        self.kill_at: tuple[str, bool] | None = None
        self.stop_at: str | None = None
        self.stop: Callable[[], None] = lambda: None
        self.dead = False
        #: What failed since the newest job began.
        self.failed: set[str] = set()

    def do(self, what: str) -> None:
        """Have the effect of a call, or fail before or after it; nothing of a dead agent's."""
        if self.dead:
            raise Killed
        late = self.broken.get(what)
        killed = self.kill_at if self.kill_at and self.kill_at[0] == what else None
        if what == self.stop_at:
            self.stop()
        if not (killed == (what, False) or late is False):
            self._effect(what)
        if killed:
            self.dead = True
            raise Killed
        if late is not None:
            self.failed.add(what)
            if what in self.once:
                self.once.discard(what)
                del self.broken[what]
            raise CaptureFailed(f"{what} fails")

    def discard(self) -> None:
        """As the real one, which leaves to the API what Glance does not delete now."""
        with contextlib.suppress(StillframeError):
            self.do("discard")

    def power_state(self) -> PowerState:
        return PowerState.PAUSED if self.paused else PowerState.RUNNING

    def sentinel_acts(self) -> None:
        """Let a guest run whose agent is gone or late."""
        if self.armed:
            self.paused = self.armed = False

    def _effect(self, what: str) -> None:
        effects: dict[str, tuple[str, Any]] = {
            "suspend": ("paused", True),
            "resume": ("paused", False),
            "arm": ("armed", True),
            "disarm": ("armed", False),
            "begin": ("captured", True),
            "end": ("captured", False),
            "stream": ("image", "streamed"),
            "publish": ("image", "published"),
            "discard": ("image", "gone"),
        }
        if what == "begin":
            assert not self.captured, "a second capture of one guest"
        if what in effects:
            setattr(self, *effects[what])


class Snapshots(RuleBasedStateMachine):
    """One guest and its agent."""

    def __init__(self) -> None:
        super().__init__()
        self.world, self.patches = World(), pytest.MonkeyPatch()
        self._play()
        self.directory = Path(tempfile.mkdtemp())
        self.journal = Journal(self.directory / "journal.sqlite")
        options = dataclasses.replace(SETTINGS, freeze="never")
        self.pipeline = Pipeline(tools_of(self.world, self.journal, self.directory, options))

    def teardown(self) -> None:
        self.patches.undo()
        self.journal.close()
        shutil.rmtree(self.directory)

    @rule(call=st.sampled_from(CALLS), late=st.booleans(), once=st.booleans())
    def breaks(self, call: str, late: bool, once: bool) -> None:
        """From now on that fails, before or after its effect."""
        self.world.broken[call] = late
        if once:
            self.world.once.add(call)

    @rule()
    def heals(self) -> None:
        """Everything works again."""
        self.world.broken.clear()
        self.world.once.clear()

    @rule()
    def sentinel_acts(self) -> None:
        """Its budget is over."""
        self.world.sentinel_acts()

    @rule()
    def snapshot(self) -> None:
        self._run(self._accept())

    @rule(call=st.sampled_from(CALLS), interrupted=st.booleans())
    def snapshot_that_is_stopped(self, call: str, interrupted: bool) -> None:
        """By its user or the agent's stop, while a call is at work."""
        job = self._accept()
        why = JobInterrupted("the agent stops") if interrupted else JobCancelled("cancelled")
        self.world.stop_at, self.world.stop = call, lambda: job.stop(why)
        self._run(job)

    @rule(
        call=st.sampled_from(CALLS),
        late=st.booleans(),
        stands=st.booleans(),
        then=st.sampled_from((None, *CALLS)),
        alone=st.booleans(),
    )
    def snapshot_that_is_killed(
        self, call: str, late: bool, stands: bool, then: str | None, alone: bool
    ) -> None:
        """With the agent, before or after the effect of a call; its next start recovers.

        Or goes on with it, where the frozen view `stands`. `then` fails there;
        but where the sentinel was killed, too (not `alone`), the guest can be resumed.
        """
        job = self._accept()
        self.world.kill_at = (call, late)
        with contextlib.suppress(Killed):
            self._run(job)
        self.world.kill_at, was_killed = None, self.world.dead
        self.world.dead = False
        if not was_killed:
            return
        if alone or {"find", "resume"} & {then, *self.world.broken}:
            self.world.sentinel_acts()
        self.world.armed = False
        if then is not None:
            self.breaks(then, late=False, once=False)
        entry = self.journal.find(job.entry.job_id)
        assert entry is not None
        again = Job(entry, "h", RecordedReports(self.journal))
        goes_on = stands and self.world.captured and entry.step in ("stream", "verify", "publish")
        if entry.step is None or goes_on:
            self._run(again)
            return
        was_published = self.pipeline.recover(again)
        error = None if was_published else JobInterrupted("the compute agent ended")
        self._ended(again, error)

    @invariant()
    def the_guest_runs_or_is_watched(self) -> None:
        assert not self.world.paused or self.world.armed

    @invariant()
    def what_was_captured_is_marked(self) -> None:
        """Ended, or known to the journal, which has it ended before the guest's next job."""
        assert not self.world.captured or self.journal.unreleased()

    @invariant()
    def no_job_is_open(self) -> None:
        assert self.journal.open_entries() == []

    def _accept(self) -> Job:
        # A guest that a user left paused is another test's.
        self.world.sentinel_acts()
        self.world.image, self.world.stop_at = "queued", None
        self.world.failed.clear()
        request = SnapshotRequest(
            instance=InstanceRef(uuid=GUEST), image_id=str(uuid.uuid4()), job_id=str(uuid.uuid4())
        )
        self.journal.accept(request, {})
        entry = self.journal.find(request.job_id)
        assert entry is not None
        return Job(entry, "h", RecordedReports(self.journal))

    def _run(self, job: Job) -> None:
        try:
            self.pipeline.run(job)
        except StillframeError as error:
            self._ended(job, error)
        else:
            self._ended(job, None)

    def _ended(self, job: Job, error: StillframeError | None) -> None:
        """An image is published exactly if its job is done; else it goes, or nobody could."""
        outcome, image = job.finish(error), self.world.image
        if outcome.state is JobState.DONE:
            assert image == "published"
        else:
            assert image == "gone" or "discard" in self.world.failed
        watched_for = {"resume", "disarm"} & self.world.failed
        assert not self.world.armed or watched_for, "nobody called the sentinel off"

    def _play(self) -> None:
        """Put the world in the place of what the pipeline calls."""
        world, patch = self.world, self.patches.setattr
        patch(make, "by_method", lambda *_: world)
        patch(release, "_PATIENCE_S", 0.0)
        patch(release, "_RESUME_PATIENCE_S", 0.0)
        patch(watch.Watch, "__enter__", lambda watch_: watch_)
        patch(watch.Watch, "__exit__", lambda *_: None)
        patch(Publication, "discard", lambda _: world.discard())
        for name in ("require_queued", "describe", "stream", "verify", "publish"):
            patch(Publication, name, lambda *_, name=name: world.do(name))


Snapshots.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestSnapshots = Snapshots.TestCase
