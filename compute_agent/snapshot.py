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

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

from common import clock
from common.messages import CaptureFigures
from common.states import PowerState, TaskState
from compute_agent import publication
from compute_agent.capture import choose, make
from compute_agent.capture.base import Capture, CaptureTarget
from compute_agent.guest import description
from compute_agent.guest.domain import Guest
from compute_agent.jobs import Job
from compute_agent.tools import Settings, Tools

LOG = logging.getLogger(__name__)

_STAMPS_TIMEOUT_S = 2.0


@dataclasses.dataclass(slots=True, kw_only=True)
class Run:
    """One snapshot at work: what the steps hand on to each other."""

    job: Job
    tools: Tools
    guest: Guest
    capture: Capture
    target: CaptureTarget
    began: float = dataclasses.field(default_factory=time.monotonic)
    pauses: bool
    #: "crash" (as if the power had failed) or "filesystem" (nothing was half-written).
    consistency: str
    #: Wall clock just before the stop (or, without one, the capture).
    captured_at: float = 0.0
    #: time.monotonic() around the stop.
    paused_at: float = 0.0
    resumed_at: float = 0.0
    #: The upload has begun: whatever the image holds is ours.
    streaming: bool = False


def prepare(run: Run) -> None:
    """Do what needs no stop: space, scratch, flush."""
    run.capture.prepare()


def pause(run: Run) -> None:
    """Stop the vCPUs, if this run pauses; the sentinel watches from before the stop."""
    if run.pauses:
        run.tools.sentinel.arm(run.guest.uuid)
    run.captured_at = clock.epoch_s()
    run.paused_at = time.monotonic()
    if run.pauses:
        run.guest.suspend()


def fix_instant(run: Run) -> None:
    """Fix the point in time; in a run that pauses, nothing else happens inside the stop."""
    run.capture.begin()


def resume(run: Run) -> None:
    """Let the vCPUs run on, then work out what the stop was like."""
    if run.pauses:
        run.guest.resume()
    run.resumed_at = time.monotonic()
    if run.pauses:
        run.tools.sentinel.disarm(run.guest.uuid)
    run.job.result.capture = _figures(run)


def stream(run: Run) -> None:
    """Read the frozen view once, straight into the image."""
    publication.describe(run.tools.images, run.job, run.tools.settings.image_format)
    run.streaming = True
    publication.stream(run.tools, run.job, run.capture.export())


def verify(run: Run) -> None:
    """Compare size and sha512 with what Glance says it holds."""
    publication.verify(run.tools.images, run.job)


def publish(run: Run) -> None:
    """Write on the image what only the verified whole can say."""
    publication.publish(run.tools.images, run.job)
    LOG.info(
        "Snapshot image %s is active after %.1f s",
        run.job.request.image_id,
        time.monotonic() - run.began,
    )


def release(run: Run) -> None:
    """Give back the capture: end the job, remove scratch and socket."""
    run.capture.end()


def run_on(run: Run) -> None:
    """Undo `pause`: whatever failed, the guest runs first; a pause that is over is not ours."""
    if run.pauses and not run.resumed_at:
        run.guest.resume()
        run.tools.sentinel.disarm(run.guest.uuid)


def discard_image(run: Run) -> None:
    """Undo `stream`: an image that is not whole goes."""
    publication.discard(run.tools.images, run.job, began=run.streaming)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step; `silent` ones lie inside the pause and are neither journalled nor told."""

    name: str
    run: Callable[[Run], None]
    undo: Callable[[Run], None] | None = None
    task_state: TaskState = TaskState.IMAGE_SNAPSHOT
    silent: bool = False


STEPS: tuple[Step, ...] = (
    Step(name="prepare", run=prepare, undo=release),
    Step(name="pause", run=pause, undo=run_on),
    Step(name="capture", run=fix_instant, silent=True),
    Step(name="resume", run=resume, silent=True),
    Step(name="stream", run=stream, undo=discard_image, task_state=TaskState.IMAGE_UPLOADING),
    Step(name="verify", run=verify, task_state=TaskState.IMAGE_UPLOADING),
    Step(name="publish", run=publish, task_state=TaskState.IMAGE_UPLOADING),
    Step(name="release", run=release, task_state=TaskState.IMAGE_UPLOADING),
)

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
        """Take the snapshot that `job` asks for, or undo all of it and raise why not."""
        try:
            run = self._begin(job)
        except BaseException:
            publication.discard(self._tools.images, job, began=False)
            raise
        begun: list[Step] = []
        try:
            for step in STEPS:
                self._enter(step, run)
                begun.append(step)
                step.run(run)
        except BaseException:
            _undo(begun, run)
            if not any(step.undo is discard_image for step in begun):
                discard_image(run)
            raise

    def recover(self, job: Job) -> bool:
        """Put right what a crash left of `job`; return whether its image was published.

        Raises InstanceNotFound if the instance is gone: so is what we did to it.
        """
        entry, facts = job.entry, job.entry.facts
        was_published = entry.step == "release"
        if not was_published:
            began = entry.step in ("stream", "verify", "publish")
            publication.discard(self._tools.images, job, began=began)
        guest = self._tools.hypervisor.guest(job.request.instance.uuid)
        if facts.get("pauses") and entry.step == "pause":
            LOG.warning("Resuming the guest that the interrupted job had paused")
            guest.resume()
        workspace = self._tools.directories.of_job(entry.job_id)
        make.by_method(facts["method"], guest, _target_of(facts), workspace, 0).end()
        if was_published:
            job.result.capture = CaptureFigures.from_wire(facts["figures"])
        return was_published

    def _begin(self, job: Job) -> Run:
        tools = self._tools
        guest = tools.hypervisor.guest(job.request.instance.uuid)
        domain = guest.describe()
        disk = description.root_disk(domain)
        target = CaptureTarget(disk=disk, capacity_bytes=guest.capacity_bytes(disk.target))
        state = guest.power_state()
        circumstances = choose.Circumstances(active=guest.is_active(), disk=disk)
        method = choose.choose(circumstances, tools.settings.method)
        workspace = tools.directories.of_job(job.entry.job_id)
        capture = make.by_method(
            method, guest, target, workspace, tools.settings.scratch_reserve_percent
        )
        wanted = (job.request.options.pause or tools.settings.pause) == "always"
        LOG.info(
            "Snapshot of disk %s (%d MiB) to image %s begins: method %s, guest %s",
            disk.target,
            target.capacity_bytes >> 20,
            job.request.image_id,
            method,
            state.name.lower(),
        )
        return Run(
            job=job,
            tools=tools,
            guest=guest,
            capture=capture,
            target=target,
            pauses=wanted and capture.pausable and state is PowerState.RUNNING,
            consistency="filesystem" if guest.was_shut_down_in_order() else "crash",
        )

    def _enter(self, step: Step, run: Run) -> None:
        """Journal and tell that a step begins; inside the pause, only note the time."""
        run.job.begin_step(step.name)
        if step.silent:
            return
        run.job.raise_if_stopped()
        self._tools.journal.begin_step(run.job.entry.job_id, step.name, _facts(run))
        run.job.tell(step.task_state)


def _undo(begun: list[Step], run: Run) -> None:
    """Undo what had begun, newest first; one failing undo does not keep the others from theirs."""
    for step in reversed(begun):
        if step.undo is None:
            continue
        try:
            step.undo(run)
        except Exception:
            LOG.exception(
                "Undoing step %s failed; the next start of the agent tries again", step.name
            )


def _facts(run: Run) -> dict[str, Any]:
    """Return what `recover` needs to know of a run."""
    figures = run.job.result.capture
    return {
        "method": run.capture.method,
        "pauses": run.pauses,
        "disk": dataclasses.asdict(run.target.disk),
        "capacity_bytes": run.target.capacity_bytes,
        "figures": figures.to_wire() if figures else None,
    }


def _target_of(facts: dict[str, Any]) -> CaptureTarget:
    return CaptureTarget(
        disk=description.Disk(**facts["disk"]), capacity_bytes=facts["capacity_bytes"]
    )


def _figures(run: Run) -> CaptureFigures:
    """Return what the capture was like, and say so in the log."""
    pause_ms, inside = None, None
    if run.pauses:
        proof = run.guest.pause_since(run.captured_at, _STAMPS_TIMEOUT_S)
        pause_ms = proof.pause_ms if proof else (run.resumed_at - run.paused_at) * 1e3
        inside = proof.instant_inside if proof else None
        LOG.info("Guest resumed after %.1f ms (paused, captured, resumed)", pause_ms)
        if not inside:
            LOG.warning("QEMU's events do not prove that the instant lay inside the pause")
    else:
        LOG.info("Captured without a pause")
    return CaptureFigures(
        method=run.capture.method,
        consistency=run.consistency,
        captured_at=run.captured_at,
        pause_ms=pause_ms,
        instant_inside_pause=inside,
    )
