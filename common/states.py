# SPDX-License-Identifier: Apache-2.0
"""The state machines of the project, as tables.

A job moves only through `advance`, which refuses what the table does not hold;
the API's store writes each move as a compare-and-swap. Task states, vm states
and power states are Nova's names and numbers, because clients read them.
"""

from __future__ import annotations

import enum


class TaskState(enum.StrEnum):
    """What is being done to an instance, as `OS-EXT-STS:task_state` shows it (Nova's words)."""

    IMAGE_SNAPSHOT_PENDING = "image_snapshot_pending"
    IMAGE_SNAPSHOT = "image_snapshot"
    IMAGE_PENDING_UPLOAD = "image_pending_upload"
    IMAGE_UPLOADING = "image_uploading"
    IMAGE_BACKUP = "image_backup"
    REBUILDING = "rebuilding"
    REBUILD_BLOCK_DEVICE_MAPPING = "rebuild_block_device_mapping"
    REBUILD_SPAWNING = "rebuild_spawning"
    PAUSING = "pausing"
    UNPAUSING = "unpausing"
    POWERING_OFF = "powering-off"
    POWERING_ON = "powering-on"
    REBOOTING = "rebooting"
    REBOOTING_HARD = "rebooting_hard"
    SCHEDULING = "scheduling"
    BLOCK_DEVICE_MAPPING = "block_device_mapping"
    SPAWNING = "spawning"
    DELETING = "deleting"


class VmState(enum.StrEnum):
    """Where an instance stands when nothing is being done to it (Nova's words)."""

    ACTIVE = "active"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    ERROR = "error"
    BUILDING = "building"


class PowerState(enum.IntEnum):
    """What the hypervisor says of the guest (Nova's numbers)."""

    NOSTATE = 0
    RUNNING = 1
    PAUSED = 3
    SHUTDOWN = 4
    CRASHED = 6
    SUSPENDED = 7


#: The vm state that a power state means while no job says otherwise.
VM_STATE_OF_POWER_STATE: dict[PowerState, VmState] = {
    PowerState.NOSTATE: VmState.STOPPED,
    PowerState.RUNNING: VmState.ACTIVE,
    PowerState.PAUSED: VmState.PAUSED,
    PowerState.SHUTDOWN: VmState.STOPPED,
    PowerState.CRASHED: VmState.ERROR,
    PowerState.SUSPENDED: VmState.SUSPENDED,
}

#: Nova snapshots instances in these vm states and answers 409 in the others.
SNAPSHOT_VM_STATES = frozenset({VmState.ACTIVE, VmState.STOPPED, VmState.PAUSED, VmState.SUSPENDED})


class JobKind(enum.StrEnum):
    """What was asked for."""

    SNAPSHOT = "snapshot"
    BACKUP = "backup"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    START = "start"
    STOP = "stop"
    REBOOT = "reboot"
    CREATE = "create"
    DELETE = "delete"
    #: Boots an image in an instance that nobody sees, to find whether it does.
    VERIFY = "verify"
    REBUILD = "rebuild"


#: What makes an image; the others leave a job's image ids empty.
IMAGE_KINDS = frozenset({JobKind.SNAPSHOT, JobKind.BACKUP})
#: What gives an instance another disk, made of an image.
DISK_KINDS = frozenset({JobKind.REBUILD})
#: What only changes the power state.
POWER_KINDS = frozenset(
    {JobKind.PAUSE, JobKind.UNPAUSE, JobKind.START, JobKind.STOP, JobKind.REBOOT}
)
#: Done in moments, whatever images are at work; one that was interrupted is simply done again.
QUICK_KINDS = POWER_KINDS | {JobKind.DELETE}

#: Nova rebuilds instances in these vm states and answers 409 in the others.
REBUILD_VM_STATES = frozenset({VmState.ACTIVE, VmState.STOPPED, VmState.ERROR})

#: What an instance is first shown to be at.
FIRST_TASK_STATE: dict[JobKind, TaskState] = {
    JobKind.SNAPSHOT: TaskState.IMAGE_SNAPSHOT_PENDING,
    JobKind.BACKUP: TaskState.IMAGE_BACKUP,
    JobKind.PAUSE: TaskState.PAUSING,
    JobKind.UNPAUSE: TaskState.UNPAUSING,
    JobKind.START: TaskState.POWERING_ON,
    JobKind.STOP: TaskState.POWERING_OFF,
    JobKind.REBOOT: TaskState.REBOOTING,
    JobKind.CREATE: TaskState.SCHEDULING,
    JobKind.DELETE: TaskState.DELETING,
    # No instance of anybody's shows it.
    JobKind.VERIFY: TaskState.SPAWNING,
    JobKind.REBUILD: TaskState.REBUILDING,
}


class LockedBy(enum.StrEnum):
    """Who locked an instance (Nova's words); only administrators unlock what one of them did."""

    OWNER = "owner"
    ADMIN = "admin"


class JobState(enum.StrEnum):
    """Where a job stands in the ledger."""

    #: Recorded; the agent has not said that it has it.
    PENDING = "pending"
    #: In the agent's journal; survives the agent.
    ACCEPTED = "accepted"
    #: A step has begun.
    RUNNING = "running"
    #: Ended: the result stands.
    DONE = "done"
    #: Ended without its result; `reason` says why.
    ERROR = "error"
    #: Ended because somebody asked for it.
    CANCELLED = "cancelled"


class JobEvent(enum.StrEnum):
    """What moves a job."""

    ACCEPT = "accept"
    PROGRESS = "progress"
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"


ENDED = frozenset({JobState.DONE, JobState.ERROR, JobState.CANCELLED})
OPEN = frozenset(JobState) - ENDED

#: The event that an agent's reported outcome means.
EVENT_OF_OUTCOME: dict[JobState, JobEvent] = {
    JobState.DONE: JobEvent.FINISH,
    JobState.ERROR: JobEvent.FAIL,
    JobState.CANCELLED: JobEvent.CANCEL,
}


class IllegalTransition(Exception):
    """The table holds no move from this state on this event."""


def _transitions() -> dict[tuple[JobState, JobEvent], JobState]:
    # Reports may be doubled, reordered or lost: whatever says that the agent
    # has the job moves it forward from any open state, never backward.
    table = {
        (JobState.PENDING, JobEvent.ACCEPT): JobState.ACCEPTED,
        (JobState.ACCEPTED, JobEvent.ACCEPT): JobState.ACCEPTED,
        (JobState.RUNNING, JobEvent.ACCEPT): JobState.RUNNING,
    }
    for state in OPEN:
        table[state, JobEvent.PROGRESS] = JobState.RUNNING
        table[state, JobEvent.FINISH] = JobState.DONE
        table[state, JobEvent.FAIL] = JobState.ERROR
        table[state, JobEvent.CANCEL] = JobState.CANCELLED
    return table


TRANSITIONS = _transitions()


def advance(state: JobState, event: JobEvent) -> JobState:
    """Return the state after `event`; raise IllegalTransition if the table has none."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"a job that is {state} cannot {event}") from None
