# SPDX-License-Identifier: Apache-2.0
"""One snapshot, start to end: the steps, in order, each with what undoes it.

Start reading at STEPS. `Pipeline.run` is called by `jobs` for each accepted
request; it journals a step before the step begins, except inside the pause,
where nothing happens that need not: the entry of `pause` stands for the whole
stop. After an error the steps that had begun are undone, newest first, so the
guest runs on before anything else is tidied. `Pipeline.recover` does the same
from the journal after a crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator

from common.errors import CaptureFailed, InstanceBusy, InstanceNotFound, StillframeError
from common.reports import CaptureFigures, DiskImage
from common.states import JobKind, TaskState
from compute_agent import release, watch
from compute_agent.disks.nbd import NbdError
from compute_agent.guest.domain import Guest
from compute_agent.jobs import Job
from compute_agent.pause import Freeze
from compute_agent.publication import Publication
from compute_agent.run import Run, begin, facts_of, root_image
from compute_agent.stream.adaptive import AdaptiveRate
from compute_agent.take_up import take_up
from compute_agent.tools import Settings, Tools

LOG = logging.getLogger(__name__)


def prepare(run: Run) -> None:
    """Do what needs no stop: checkpoint, space, scratch, flush."""
    run.publication.require_queued()
    if run.keeps_checkpoint:
        _begin_checkpoint(run)
    elif run.capture.method == "overlay":
        # libvirt puts no overlay on a disk that has a checkpoint.
        run.tools.increments.forget(run.guest)
    run.capture.prepare()
    if run.capture.pausable and not run.guest.is_idle():
        # libvirt would have us wait for it, half a minute, with the guest stopped.
        raise InstanceBusy(
            "another operation (a migration, a save, a backup) is at work on the instance; "
            "try again when it ends"
        )


def pause(run: Run) -> None:
    """Freeze and stop the guest, as far as this run does; the sentinel watches from before it."""
    run.pause.begin()


def fix_instant(run: Run) -> None:
    """Fix the point in time; in a run that pauses, nothing else happens inside the stop."""
    run.capture.begin()


def resume(run: Run) -> None:
    """Let the guest run on, then work out what the stop was like, and look after what goes on."""
    run.pause.end()
    run.job.result.capture = _figures(run)
    _look_after(run)


def stream(run: Run) -> None:
    """Read the frozen views once, straight into the images."""
    with _power_off_explained(run):
        run.exports = run.capture.exports()
        _note_full_ones(run)
        run.publication.describe()
        run.publication.stream(run.exports)


def verify(run: Run) -> None:
    """Compare size and sha512 with what Glance says it holds."""
    with _power_off_explained(run):
        run.publication.verify(run.exports)


def publish(run: Run) -> None:
    """Write on the images what only the verified whole can say."""
    run.publication.publish()
    for image in run.job.result.images:
        LOG.info(
            "Snapshot image %s is active after %.1f s", image.image_id, time.monotonic() - run.began
        )


def give_back(run: Run) -> None:
    """Give back the capture: end the job, remove scratch and socket; keep the checkpoint."""
    run.closing.close()
    release.end_capture(run)
    if run.keeps_checkpoint:
        capacities = {target.name: target.capacity_bytes for target in run.targets}
        run.tools.increments.settle(
            run.guest, run.job.entry.job_id, run.job.result.images, capacities
        )


def run_on(run: Run) -> None:
    """Undo `pause`: whatever failed, the guest runs first; a pause that is over is not ours."""
    release.let_run(run)


def undo_all(run: Run) -> None:
    """Undo everything else: the guest's disk first, then whatever no image came of."""
    with contextlib.ExitStack() as undoing:
        undoing.callback(run.publication.discard)
        if run.keeps_checkpoint:
            undoing.callback(run.tools.increments.give_up, run.guest)
        undoing.callback(release.end_capture, run)
        run.closing.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step; `silent` ones lie inside the pause and are neither journalled nor told.

    When a `final` one begins, the snapshot is made: whatever fails then is put
    right later, and neither that nor a cancel takes the images away again.
    """

    name: str
    run: Callable[[Run], None]
    undo: Callable[[Run], None] | None = None
    task_state: TaskState = TaskState.IMAGE_SNAPSHOT
    silent: bool = False
    final: bool = False


STEPS: tuple[Step, ...] = (
    Step(name="prepare", run=prepare, undo=undo_all),
    Step(name="pause", run=pause, undo=run_on),
    Step(name="capture", run=fix_instant, silent=True),
    Step(name="resume", run=resume, silent=True),
    Step(name="stream", run=stream, task_state=TaskState.IMAGE_UPLOADING),
    Step(name="verify", run=verify, task_state=TaskState.IMAGE_UPLOADING),
    Step(name="publish", run=publish, task_state=TaskState.IMAGE_UPLOADING),
    Step(name="release", run=give_back, task_state=TaskState.IMAGE_UPLOADING, final=True),
)

#: What is left of a snapshot whose frozen view outlived an agent.
_GOING_ON = STEPS[[step.name for step in STEPS].index("stream") :]

_UNTIL_UPLOAD = {
    JobKind.SNAPSHOT: TaskState.IMAGE_SNAPSHOT,
    JobKind.BACKUP: TaskState.IMAGE_BACKUP,
}

#: Steps that a journal entry can name, i.e. whose begin is recorded.
JOURNALLED = tuple(step.name for step in STEPS if not step.silent)


class Pipeline:
    """Runs and recovers snapshots with one host's tools."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def use(self, settings: Settings) -> None:
        """Obey changed options from the next snapshot on."""
        self._tools = dataclasses.replace(self._tools, settings=settings)

    def run(self, job: Job) -> None:
        """Take the snapshot that `job` asks for, or undo all of it and raise why not.

        One that an earlier agent had begun, its frozen view standing, goes on.
        """
        try:
            guest = self._tools.hypervisor.guest(job.request.instance.uuid)
            if job.entry.step is not None:
                run, begun, steps = take_up(self._tools, job, guest), [STEPS[0]], _GOING_ON
            else:
                release.give_back_earlier(self._tools, guest)
                run, begun, steps = begin(self._tools, job, guest), [], STEPS
        except BaseException:
            self._give_up(job)
            raise
        self._walk(run, begun, steps)

    def _give_up(self, job: Job) -> None:
        """Let go of a job that could not even begin, or be gone on with."""
        entry = job.entry
        images = [DiskImage.from_wire(image) for image in entry.facts.get("images", ())]
        job.result.images = job.result.images or images or [root_image(job, "root")]
        publication = Publication(self._tools, job)
        if entry.step is not None:
            # Its capture stands open; `release` sees to it.
            self._tools.journal.mark_unreleased(entry.job_id)
            publication.take_for_ours()
        publication.discard()

    def _walk(self, run: Run, begun: list[Step], steps: Iterable[Step]) -> None:
        """Take the steps; after an error undo what had begun, and raise it."""
        try:
            if begun:
                _look_after(run)
            for step in steps:
                self._enter(step, run)
                begun.append(step)
                step.run(run)
        except BaseException:
            if begun and begun[-1].final:
                LOG.exception("The snapshot is made, but not everything could be given back")
                return
            _undo(begun, run)
            if not begun:
                run.publication.discard()
            raise

    def recover(self, job: Job) -> bool:
        """Put right what a crash left of `job`; return whether its image was published.

        What cannot be put right now is marked, and tried again (see `release`).
        """
        entry, facts = job.entry, job.entry.facts
        job.result.images = [DiskImage.from_wire(image) for image in facts["images"]]
        was_published = entry.step == "release"
        try:
            guest = self._tools.hypervisor.guest(job.request.instance.uuid)
            published = job.result.images if was_published else ()
            release.give_back(self._tools, entry, guest, published=published)
        except InstanceNotFound:
            LOG.info("The instance is gone, and what the job did to it")
            release.give_up(self._tools, entry)
        except StillframeError as error:
            LOG.error("Job %s could not be put right now: %s", entry.job_id, error)
            self._tools.journal.mark_unreleased(entry.job_id)
        if was_published:
            job.result.capture = CaptureFigures.from_wire(facts["figures"])
        else:
            publication = Publication(self._tools, job)
            if entry.step in ("stream", "verify", "publish"):
                publication.take_for_ours()
            publication.discard()
        return was_published

    def _enter(self, step: Step, run: Run) -> None:
        """Journal and tell that a step begins; inside the pause, only note the time."""
        run.job.begin_step(step.name)
        if step.silent:
            return
        if not step.final:
            run.job.raise_if_stopped()
        self._tools.journal.begin_step(run.job.entry.job_id, step.name, facts_of(run))
        run.job.tell(_task_state(step, run.job))


def _task_state(step: Step, job: Job) -> TaskState:
    """Return what a step is shown as: until its upload, a backup is as Nova calls it."""
    if step.task_state is TaskState.IMAGE_SNAPSHOT:
        return _UNTIL_UPLOAD[job.request.kind]
    return step.task_state


def _undo(begun: list[Step], run: Run) -> None:
    """Undo what had begun, newest first; one failing undo does not keep the others from theirs."""
    for step in reversed(begun):
        if step.undo is None:
            continue
        try:
            step.undo(run)
        except Exception:
            LOG.exception("Undoing step %s failed; it is tried again later", step.name)


def _begin_checkpoint(run: Run) -> None:
    """Make the checkpoint; an instance that takes none gets a full snapshot without one."""
    begun = run.tools.increments.begin(run.guest, run.targets, run.job.entry.job_id)
    run.keeps_checkpoint = begun.checkpoint_made
    if not begun.chain_stands:
        run.read_everything()


def _note_full_ones(run: Run) -> None:
    """An increment whose bitmap turned out to be lost is a full snapshot."""
    for at, (image, export) in enumerate(zip(run.job.result.images, run.exports, strict=True)):
        if image.parent_image_id and not export.changes:
            run.job.result.images[at] = dataclasses.replace(
                image,
                parent_image_id=None,
                chain_length=0,
                why_full="the record of what has changed was lost",
            )


def _look_after(run: Run) -> None:
    """From now on the job ends, or reads slower, when somebody or something needs it to."""
    settings, job, capture = run.tools.settings, run.job, run.capture
    room = watch.space_is_left(
        capture.growing(),
        settings.scratch_min_free_bytes,
        capture.reserve_bytes,
        run.plan.others_bytes,
    )
    run.closing.enter_context(watch.Watch(job, [room]))
    wanted = watch.image_is_wanted(run.tools.images, run.publication.present)
    # Apart: a Glance that hangs must not keep anybody from looking at the space left.
    run.closing.enter_context(watch.Watch(job, [wanted], watch.IMAGE_INTERVAL_S))
    if settings.adaptive and run.capture.pausable:
        suffers = watch.guest_suffers(run.guest, _courtesy(run))
        run.closing.enter_context(watch.Watch(job, [suffers]))


def _courtesy(run: Run) -> AdaptiveRate:
    throttle, job = run.tools.throttle, run.job
    try:
        usual_ns = [way.mean_ns for way in run.guest.disk_latency()]
    except StillframeError as error:
        LOG.warning("What the guest's I/O usually takes is not known: %s", error)
        usual_ns = [0.0, 0.0]
    return AdaptiveRate(
        job.courtesy,
        ceiling=lambda: job.throttle.rate_bytes_s or throttle.rate_bytes_s,
        usual_ns=usual_ns,
        factor=run.tools.settings.latency_factor,
    )


@contextlib.contextmanager
def _power_off_explained(run: Run) -> Iterator[None]:
    """A frozen view that QEMU kept ends with it: say so, rather than that a line broke."""
    try:
        yield
    except NbdError as error:
        if run.capture.pausable and not run.job.stopped.is_set() and not _is_active(run.guest):
            raise CaptureFailed(
                "the instance was powered off during its snapshot; ask for it again"
            ) from error
        raise


def _is_active(guest: Guest) -> bool:
    try:
        return guest.is_active()
    except InstanceNotFound:
        return False
    except StillframeError:
        return True


def _figures(run: Run) -> CaptureFigures:
    """Return what the capture was like, and say so in the log."""
    stop = run.pause.proven(len(run.targets) if run.capture.method == "backup" else 0)
    if stop is None:
        LOG.info("Captured without a pause")
    else:
        LOG.info("Guest resumed after %.1f ms (paused, captured, resumed)", stop.pause_ms)
        if not stop.instant_inside:
            LOG.warning("QEMU's events do not prove that the instant lay inside the pause")
    if run.pause.freeze is Freeze.REQUIRE and not run.pause.froze:
        raise CaptureFailed("the instance's file systems did not stay frozen during the capture")
    return CaptureFigures(
        method=run.capture.method,
        consistency="filesystem" if run.pause.froze else run.consistency,
        captured_at=run.pause.began_at,
        pause_ms=stop.pause_ms if stop else None,
        instant_inside_pause=stop.instant_inside if stop else None,
        stamps=stop.stamps if stop else None,
        freeze_ms=run.pause.freeze_ms,
        disks_left_out=run.left_out,
    )
