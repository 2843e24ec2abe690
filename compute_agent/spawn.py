# SPDX-License-Identifier: Apache-2.0
"""A new instance of an image, start to end: STEPS, in order, and one way back.

Each step is journalled before it begins. Whatever fails, `undo` leaves nothing: the mark
in an instance's directory and the journal's step tell what is ours, so that it serves after
a crash as well (`Spawns.recover`, `Spawns.sweep`). Deleting an instance is that same way.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

import tenacity

from common.errors import InstanceNotFound, JobFailed, StillframeError
from common.messages import CreateRequest, DeleteRequest, domain_name_of
from common.states import PowerState, TaskState
from compute_agent.guest import description
from compute_agent.guest.domain import Guest
from compute_agent.guest.metadata import Owner
from compute_agent.guest.template import Definition, domain_xml, instance_metadata
from compute_agent.jobs import Job
from compute_agent.places import Place, Places, PlaceTaken
from compute_agent.restore.model import BuiltDisk, DiskWish, ProvenImage
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)

_GIB = 1 << 30
#: A disk whose size is left to its image: [restore] max_size decides.
_ANY_SIZE_BYTES = 1 << 62
_DISK_FORMAT = "qcow2"
#: A hypervisor that is being restarted is waited for before something is left behind.
_UNDO_TRIES, _UNDO_WAIT_S = 5, 2


class SpawnFailed(JobFailed):
    """The new instance did not come to run; nothing is left of it."""

    code = "spawn_failed"


@dataclasses.dataclass(slots=True, kw_only=True)
class Run:
    """One instance on its way: what the steps hand on to each other."""

    job: Job
    request: CreateRequest
    tools: Tools
    place: Place
    virt_type: str
    #: What is in `place` is this job's.
    has_place: bool = False
    began: float = dataclasses.field(default_factory=time.monotonic)
    proven: ProvenImage | None = None
    disk: BuiltDisk | None = None
    guest: Guest | None = None


def fetch(run: Run) -> None:
    """Make its directory, and bring the image there: whole, hashed, inspected."""
    request = run.request
    for network in request.networks:
        # One that is not there is found before an image is fetched.
        run.tools.hypervisor.network_name(network)
    run.place.make()
    run.has_place = True
    run.proven = prove(run.tools, run.job, run.place, request.image_id, request.flavor.disk_gib)


def build(run: Run) -> None:
    """Make the disk of it, as large as the flavor says."""
    run.disk = build_disk(run.tools, run.job, run.place, run.proven, run.request.flavor.disk_gib)


def define(run: Run) -> None:
    """Have libvirt know it."""
    request, instance = run.request, run.request.instance
    hypervisor = run.tools.hypervisor
    definition = Definition(
        uuid=instance.uuid,
        domain_name=domain_name_of(instance.uuid),
        virt_type=run.virt_type,
        vcpus=request.flavor.vcpus,
        memory_mib=request.flavor.memory_mib,
        disk=run.place.disk,
        disk_format=_DISK_FORMAT,
        console=run.place.console,
        networks=tuple(hypervisor.network_name(one) for one in request.networks),
        image_properties=request.image_properties,
        metadata=instance_metadata(
            name=instance.name or domain_name_of(instance.uuid),
            owner=Owner(project_id=instance.project_id or "", user_id=instance.user_id or ""),
            flavor=request.flavor,
            image_id=request.image_id,
            image_properties=request.image_properties,
        ),
    )
    run.guest = hypervisor.define(domain_xml(definition))


def start(run: Run) -> None:
    """Switch it on, and see that it runs."""
    guest = run.tools.hypervisor.guest(run.request.instance.uuid)
    guest.start()
    state = guest.power_state()
    if state is not PowerState.RUNNING:
        raise SpawnFailed(f"the new instance does not run: it is {state.name.lower()}")
    run.job.result.power_state = state


def release(run: Run) -> None:
    """Give back what only making it took; then it is made, and nothing sweeps it away."""
    run.place.finish()
    LOG.info("The instance runs after %.1f s", time.monotonic() - run.began)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step; a job that is to end ends no more when a `final` one begins."""

    name: str
    run: Callable[[Run], None]
    task_state: TaskState
    final: bool = False


STEPS: tuple[Step, ...] = (
    Step(name="fetch", run=fetch, task_state=TaskState.BLOCK_DEVICE_MAPPING),
    Step(name="build", run=build, task_state=TaskState.BLOCK_DEVICE_MAPPING),
    Step(name="define", run=define, task_state=TaskState.SPAWNING),
    Step(name="start", run=start, task_state=TaskState.SPAWNING),
    Step(name="release", run=release, task_state=TaskState.SPAWNING, final=True),
)


class Spawns:
    """Makes instances and ends them, with one host's tools."""

    def __init__(self, tools: Tools, places: Places, virt_type: Callable[[], str]) -> None:
        self._tools = tools
        self._places = places
        self._virt_type = virt_type

    def create(self, job: Job) -> None:
        """Make the instance that `job` asks for, or leave nothing of it and raise why not."""
        request = job.entry.request
        if not isinstance(request, CreateRequest):
            raise TypeError(f"job {job.entry.job_id} makes no instance")
        uuid = request.instance.uuid
        require_new(self._tools, self._places, uuid)
        LOG.info(
            "Making an instance of image %s, %d vCPUs, %d MiB",
            *(request.image_id, request.flavor.vcpus, request.flavor.memory_mib),
        )
        run = Run(
            job=job,
            request=request,
            tools=self._tools,
            place=self._places.of(uuid),
            virt_type=self._virt_type(),
        )
        for step in STEPS:
            try:
                self._enter(step, job)
                step.run(run)
            except BaseException:
                undo_patiently(self._tools, run.place, is_ours=run.has_place)
                raise

    def delete(self, job: Job) -> None:
        """End the instance that `job` names, its disks with it; one that is gone is fine."""
        request = job.entry.request
        if not isinstance(request, DeleteRequest):
            raise TypeError(f"job {job.entry.job_id} ends no instance")
        self._tools.journal.begin_step(job.entry.job_id, "delete", {})
        job.begin_step("delete")
        job.tell(TaskState.DELETING)
        end(self._tools, self._places.of(request.instance.uuid))
        self._tools.increments.forget_instance(request.instance.uuid)
        LOG.info("The instance is deleted")

    def recover(self, job: Job) -> bool:
        """Put right what a crash left of a job that made an instance; tell whether it is made."""
        if job.entry.step == STEPS[-1].name and self._finish(job.instance.uuid):
            job.result.power_state = PowerState.RUNNING
            return True
        if job.entry.step is not None:  # else what has this id here is not the job's
            undo_interrupted(self._tools, self._places, job)
        return False

    def sweep(self, busy: Callable[[], Collection[str]]) -> bool:
        """Remove what was begun and never made, but for the instances that are `busy`.

        Tells whether nothing of that stays.
        """
        # In this order: what is begun after the list was made is not in it.
        found, are_gone = self._places.unfinished(), True
        # However a cast spells an id, its directory is called by the one spelling.
        at_work = {self._places.of(one).instance_uuid for one in busy()}
        for instance_uuid in found:
            if instance_uuid in at_work or not self._places.of(instance_uuid).is_unfinished():
                continue  # it is being made, or was made in this moment
            LOG.warning("Removing what was left of instance %s, never made", instance_uuid)
            are_gone &= undo_patiently(self._tools, self._places.of(instance_uuid))
        return are_gone

    def _finish(self, instance_uuid: str) -> bool:
        """Finish what the last agent had all but made; tell whether it is: else it is swept."""
        try:
            self._places.of(instance_uuid).finish()
        except OSError:
            LOG.exception("The instance cannot be kept")
            return False
        return True

    def _enter(self, step: Step, job: Job) -> None:
        if not step.final:
            job.raise_if_stopped()
        self._tools.journal.begin_step(job.entry.job_id, step.name, {})
        job.begin_step(step.name)
        job.tell(step.task_state)


def require_new(tools: Tools, places: Places, instance_uuid: str) -> None:
    """Raise PlaceTaken if the host has a domain or files of this id: they are somebody else's.

    To be asked before anything is journalled: what a crash leaves after that is removed.
    """
    places.of(instance_uuid).require_free()
    try:
        tools.hypervisor.guest(instance_uuid)
    except InstanceNotFound:
        return
    raise PlaceTaken("the host has an instance of this id already")


def prove(tools: Tools, job: Job, place: Place, image_id: str, disk_gib: int) -> ProvenImage:
    """Fetch an image that is to be a disk of so many GiB (0: as large as itself)."""
    return tools.restorer.prove(
        job,
        image_id,
        place.fetched,
        most_bytes=disk_gib * _GIB or _ANY_SIZE_BYTES,
        task_state=TaskState.BLOCK_DEVICE_MAPPING,
    )


def build_disk(
    tools: Tools, job: Job, place: Place, proven: ProvenImage | None, disk_gib: int
) -> BuiltDisk:
    """Make the root disk of a proven image."""
    if proven is None:
        raise TypeError("an image is proven before a disk is made of it")
    size_bytes = max(disk_gib * _GIB, proven.virtual_bytes)
    wish = DiskWish(path=place.disk, format=_DISK_FORMAT, size_bytes=size_bytes)
    return tools.restorer.build(job, proven, wish)


def end(tools: Tools, place: Place, is_the_one: Callable[[Guest], bool] = lambda _: True) -> None:
    """Leave nothing of an instance: neither domain nor checkpoint nor file of ours.

    Raises HypervisorError, HypervisorUnavailable or PlaceUnusable; it may be repeated.
    """
    try:
        guest = tools.hypervisor.guest(place.instance_uuid)
        if is_the_one(guest):
            guest.cut_power()
            guest.undefine()
            if guest.is_active():
                # Somebody started it in between, and would have it run on without a definition.
                guest.cut_power()
    except InstanceNotFound:
        LOG.debug("There is no domain of instance %s", place.instance_uuid)
    place.remove()


def undo(tools: Tools, place: Place, *, is_ours: bool) -> None:
    """Leave nothing of an instance that was not made, and touch nothing of anybody else's.

    Without `is_ours` only what has the mark of such an instance is one; and a domain of
    its id is only if it lies there. Raises as `end` does.
    """
    if is_ours or place.is_marked():
        end(tools, place, is_the_one=lambda guest: _lies_in(place, guest))
    place.remove_hidden()


def _lies_in(place: Place, guest: Guest) -> bool:
    paths = [disk.path for disk in description.disks(guest.describe())]
    lies = any(path and place.directory in Path(path).parents for path in paths)
    if not lies:
        LOG.error("A domain of instance %s is somebody else's: it stays", place.instance_uuid)
    return lies


def undo_interrupted(tools: Tools, places: Places, job: Job) -> None:
    """Leave nothing of what a crash left of a job that was to make an instance."""
    # The step after it began when the directory was there.
    is_ours = job.entry.step != STEPS[0].name
    undo_patiently(tools, places.of(job.instance.uuid), is_ours=is_ours)


def undo_patiently(tools: Tools, place: Place, *, is_ours: bool = False) -> bool:
    """Leave nothing of an instance that was not made; what cannot go now is swept later.

    Tells whether it is gone.
    """
    trying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StillframeError),
        stop=tenacity.stop_after_attempt(_UNDO_TRIES),
        wait=tenacity.wait_fixed(_UNDO_WAIT_S),
        before_sleep=tenacity.before_sleep_log(LOG, logging.WARNING),
        reraise=True,
    )
    try:
        trying(undo, tools, place, is_ours=is_ours)
    except StillframeError as error:
        LOG.error("What was begun of instance %s stays for now: %s", place.instance_uuid, error)
        return False
    return True
