# SPDX-License-Identifier: Apache-2.0
"""One rebuild, start to end: the root disk made anew of an image. Start reading at STEPS.

The image is fetched and proven, and the new disk built beside the old one, before
the guest hears of it. The old disk is kept until the guest is seen to run from the
new one; whatever fails before, `put_back` makes everything what it was. Each step is
journalled before it begins. After a crash `Rebuilds.recover` puts the old disk back,
or, once the guest was to start from the new one, `Rebuilds.run` goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable

from common import qemu_img
from common.errors import InstanceBusy, InstanceNotFound, JobInterrupted, StillframeError
from common.states import JobKind, PowerState, TaskState
from compute_agent import put_back, release
from compute_agent.guest import metadata
from compute_agent.guest.domain import Guest
from compute_agent.jobs import Job
from compute_agent.journal import Entry
from compute_agent.proofs import see
from compute_agent.rebuild_run import (
    RebuildSettings,
    Run,
    begin,
    facts_of,
    inherited,
    require_architecture,
    require_unchanged,
    take_up,
)
from compute_agent.restore.model import DiskWish
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)


def fetch(run: Run) -> None:
    """Fetch the image and prove it; nothing but its own room is written to."""
    run.swap.make_room()
    run.proven = run.tools.restorer.prove(
        run.job,
        run.image_id,
        run.swap.room,
        most_bytes=run.most_bytes,
        task_state=TaskState.REBUILDING,
    )
    properties = run.proven.image.properties
    require_architecture(run.guest.definition(), properties)
    run.metadata = metadata.with_image(run.guest.definition(), run.image_id, inherited(properties))


def build(run: Run) -> None:
    """Make the new disk beside the old one: its format, its layout, its size or more."""
    if run.proven is None:
        raise RuntimeError("a disk is built of an image that was proven")
    run.tools.restorer.build(
        run.job,
        run.proven,
        DiskWish(
            path=run.swap.new,
            format=run.disk.format,
            size_bytes=max(run.capacity_bytes, run.proven.virtual_bytes),
            base_path=run.swap.base,
            base_format=run.proven.format if run.proven.is_disk else "qcow2",
        ),
    )
    # All this took a while, and from the next step on the guest hears of it.
    require_unchanged(run)


def stop(run: Run) -> None:
    """Have the guest shut down, in time, or cut its power."""
    run.down_at = time.monotonic()
    timeout_s = run.settings.shutdown_timeout_s
    obeys = run.guest.power_state() is PowerState.RUNNING
    if obeys and not run.guest.shut_down(timeout_s, run.job.stopped):
        run.job.raise_if_stopped()
        LOG.warning("The guest has not shut down in %.0f s; cutting its power", timeout_s)
    run.guest.cut_power()


def swap(run: Run) -> None:
    """Put the new disk in the old one's place; the definition says what it is made of."""
    _require_off(run.guest)
    require_unchanged(run)
    run.swap.swap()
    # One that was started just before goes on with the old file, whatever has its name.
    _require_off(run.guest)
    if run.metadata is not None:
        run.guest.write_metadata(run.metadata)


def start(run: Run) -> None:
    """Switch the guest on, unless it is to stay off."""
    if not run.starts:
        return
    run.guest.start()
    if run.down_at:
        LOG.info("The guest was off for %.1f s", time.monotonic() - run.down_at)


def prove(run: Run) -> None:
    """See the guest run from its new disk; one that is off has it checked."""
    if run.starts:
        see(run.guest, run.job, run.settings.proof)
    elif run.disk.format == "qcow2":
        qemu_img.check(run.swap.path, run.disk.format)


def give_up_old(run: Run) -> None:
    """Remove the old disk; nothing can bring it back from now on."""
    put_back.settle(run.swap, run.guest, run.tools.increments)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step; when a `final` one begins the disk is proven, and nothing undoes it."""

    name: str
    run: Callable[[Run], None]
    task_state: TaskState = TaskState.REBUILDING
    final: bool = False


STEPS: tuple[Step, ...] = (
    Step(name="fetch", run=fetch),
    Step(name="build", run=build),
    Step(name="stop", run=stop, task_state=TaskState.REBUILD_BLOCK_DEVICE_MAPPING),
    Step(name="swap", run=swap, task_state=TaskState.REBUILD_BLOCK_DEVICE_MAPPING),
    Step(name="start", run=start, task_state=TaskState.REBUILD_SPAWNING),
    Step(name="prove", run=prove, task_state=TaskState.REBUILD_SPAWNING),
    Step(name=put_back.PROVEN, run=give_up_old, task_state=TaskState.REBUILD_SPAWNING, final=True),
)

#: What the next agent goes on with: the new disk is in its place, whole.
_GOING_ON = {step.name: STEPS[at:] for at, step in enumerate(STEPS) if at >= 4}
#: In the journal from the moment at which such a step is undone: it is not gone on with then.
_UNDOING = "undo"


def goes_on(entry: Entry) -> bool:
    """Tell whether what an agent's end interrupted is a rebuild that is gone on with."""
    # Other kinds have steps of the same names.
    return entry.request.kind is JobKind.REBUILD and entry.step in _GOING_ON


def _require_off(guest: Guest) -> None:
    if guest.is_active():
        raise InstanceBusy("somebody started the instance while its disk was to be replaced")


class Rebuilds:
    """Runs and recovers rebuilds with one host's tools."""

    def __init__(self, tools: Tools, settings: RebuildSettings) -> None:
        self._tools = tools
        self.settings = settings

    def run(self, job: Job) -> None:
        """Do the rebuild that `job` asks for, or undo all of it and raise why not."""
        steps = _GOING_ON.get(job.entry.step or "")
        if steps is not None:
            self._go_on(job, steps)
            return
        guest = self._tools.hypervisor.guest(job.entry.request.instance.uuid)
        release.give_back_earlier(self._tools, guest)
        self._walk(begin(self._tools, self.settings, job, guest), STEPS)

    def recover(self, job: Job) -> bool:
        """Put right what a crash left of a job that is not gone on with; it has failed."""
        entry = job.entry
        if entry.step is None:
            return False
        try:
            guest = self._tools.hypervisor.guest(entry.request.instance.uuid)
            put_back.end(entry.step, entry.facts, guest, self._tools.increments)
            job.result.power_state = guest.power_state()
        except InstanceNotFound:
            release.give_up(self._tools, entry)
        except (StillframeError, OSError) as error:
            LOG.error("Job %s could not be put right now: %s", entry.job_id, error)
            self._tools.journal.mark_unreleased(entry.job_id)
        return False

    def _go_on(self, job: Job, steps: tuple[Step, ...]) -> None:
        """Take the steps that an agent's end left; where that cannot be begun, `release` ends it.

        Then by the journal: the disk was proven, so it stays; or the old one is put back.
        """
        entry, first = job.entry, steps[0]
        LOG.info("Going on with the rebuild in step %s: the new disk is in its place", first.name)
        try:
            guest = self._tools.hypervisor.guest(entry.request.instance.uuid)
            run = take_up(self._tools, self.settings, job, guest)
        except InstanceNotFound:
            release.give_up(self._tools, entry)
            raise
        except Exception:
            self._tools.journal.mark_unreleased(entry.job_id)
            if not first.final:
                raise
            LOG.exception("The instance has its new disk, but the old one stays for now")
        else:
            self._walk(run, steps, at=first)

    def _walk(self, run: Run, steps: tuple[Step, ...], at: Step | None = None) -> None:
        """Take the steps; after an error undo them, from `at` on if one had begun before."""
        try:
            for step in steps:
                self._enter(step, run)
                at = step
                step.run(run)
        except BaseException:
            if at is None or not at.final:
                self._undo(run, at)
                raise
            LOG.exception("The instance runs from its new disk, but the old one stays for now")
            self._tools.journal.mark_unreleased(run.job.entry.job_id)
        finally:
            _note_power(run)
        LOG.info("Rebuilt of image %s", run.image_id)

    def _enter(self, step: Step, run: Run) -> None:
        run.job.begin_step(step.name)
        if not step.final:
            run.job.raise_if_stopped()
        self._tools.journal.begin_step(run.job.entry.job_id, step.name, facts_of(run))
        # What was fetched stays so: the steps that follow move no bytes to speak of.
        fetched = run.proven.image.size_bytes or 0 if run.proven else 0
        run.job.tell(step.task_state, bytes_done=fetched, bytes_total=fetched)

    def _undo(self, run: Run, at: Step | None) -> None:
        """Make everything what it was; what cannot be now is tried again later."""
        if at is None:
            return
        job, facts = run.job, facts_of(run)
        is_leaving = isinstance(job.why_stopped, JobInterrupted) and job.stopped.is_set()
        patience_s = 0.0 if is_leaving else None
        try:
            if at.name not in put_back.UNTOUCHED:
                LOG.warning("The rebuild failed in step %s; putting the old disk back", at.name)
            if at.name in _GOING_ON:
                self._tools.journal.begin_step(job.entry.job_id, _UNDOING, facts)
            put_back.end(at.name, facts, run.guest, self._tools.increments, patience_s=patience_s)
        except Exception:
            LOG.exception("The old disk could not be put back now; it is tried again")
            self._tools.journal.mark_unreleased(job.entry.job_id)


def _note_power(run: Run) -> None:
    try:
        run.job.result.power_state = run.guest.power_state()
    except StillframeError as error:
        LOG.warning("What the guest is at now is not known: %s", error)
