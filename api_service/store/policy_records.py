# SPDX-License-Identifier: Apache-2.0
"""Backup policies and their runs, as the rest of the API sees them: frozen values, no rows."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from typing import Any


class RunState(enum.StrEnum):
    """Where a run stands: the backup of one instance that a policy wants at one time."""

    #: Not asked for yet: its time has not come, or something is in its way.
    WAITING = "waiting"
    #: Its job is at work.
    ASKED = "asked"
    #: Its backup stands and is being tried.
    VERIFYING = "verifying"
    #: Its backup stands; what the retention lets go is being removed.
    PRUNING = "pruning"
    #: Ended: the backup stands.
    DONE = "done"
    #: Ended without a backup; `reason` says why.
    ERROR = "error"
    #: Nothing was asked for; `reason` says why.
    SKIPPED = "skipped"


#: What somebody has still to look after.
OPEN_RUNS = (RunState.WAITING, RunState.ASKED, RunState.VERIFYING, RunState.PRUNING)


class Proof(enum.StrEnum):
    """Whether a backup was found to boot."""

    VERIFIED = "verified"
    #: Its policy did not want to know.
    UNTRIED = "untried"
    #: It is not known yet, or it was found not to.
    UNPROVEN = "unproven"


class Missed(enum.StrEnum):
    """What becomes of a run whose time has passed while no API ran."""

    CATCH_UP = "catch_up"
    SKIP = "skip"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many backups each rule keeps: the newest ones, or the newest of an hour, a day ..."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy."""

    id: str
    project_id: str
    user_id: str | None
    name: str
    cron: str
    time_zone: str
    #: One of `ids`, `name`, `metadata` and `all`, with its value.
    instances: dict[str, Any]
    #: None: every backup is kept.
    retention: Retention | None
    incremental: bool
    #: Every so many backups of an instance are whole, even if it is incremental; None: no matter.
    full_every: int | None
    #: As SnapshotOptions has it; None: as the agent is configured.
    freeze: str | None
    verify: bool
    missed: Missed
    jitter_s: int
    enabled: bool
    #: Who wanted it so, as jobs keep it (without a token).
    context: dict[str, Any]
    #: None: disabled, or never.
    next_due_at: dt.datetime | None
    created_at: dt.datetime
    updated_at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run."""

    id: str
    policy_id: str
    instance_uuid: str
    state: RunState
    #: Somebody asked for it, whatever the schedule says.
    manual: bool
    due_at: dt.datetime
    #: What its backup counts as for the retention.
    counts_at: dt.datetime
    start_at: dt.datetime
    #: It waits no longer than that.
    give_up_at: dt.datetime
    #: Not looked at before; None: any time.
    retry_at: dt.datetime | None
    #: How often it was asked for.
    attempts: int
    job_id: str | None
    verify_job_id: str | None
    #: How often its backup was to be tried.
    verify_attempts: int = 0
    reason: str | None
    reason_code: str | None
    created_at: dt.datetime
    finished_at: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup that a policy made, and whose images nobody has removed as far as we know."""

    job_id: str
    instance_uuid: str
    #: The root disk's first.
    image_ids: tuple[str, ...]
    #: What its images are relative to; empty: it is whole.
    parent_ids: frozenset[str]
    at: dt.datetime
    proof: Proof = Proof.UNTRIED
