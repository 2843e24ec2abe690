# SPDX-License-Identifier: Apache-2.0
"""One run of a backup policy, from its time to its end: LOOKS says what is done in which state.

Whatever is in a run's way is tried again until the policy is due next; then the
run ends and says why. Each look can be broken off anywhere and repeated: an
attempt's job has an id that follows from the run's, so none is asked for twice.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Mapping

from api_service.backups import Backups, BackupWish
from api_service.errors import Conflict, OverQuota
from api_service.pruning import Pruner
from api_service.store.inventory import Inventory
from api_service.store.ledger import Ledger
from api_service.store.policies import Policies
from api_service.store.policy_records import Policy, Run, RunState
from api_service.store.policy_runs import PolicyRuns
from api_service.store.records import Instance, Job
from common import clock, context
from common.context import RequestContext
from common.errors import (
    DeadlinePassed,
    InstanceBusy,
    JobCancelled,
    StillframeError,
    VerifyFailed,
)
from common.glance import ImageNotFound, ImageServiceUnavailable
from common.messages import SnapshotOptions
from common.states import ENDED, JobState

LOG = logging.getLogger(__name__)

_NAME_MAX = 255
_RETRY_FIRST_S = 5
_RETRY_MAX_S = 300
_DOUBLINGS_MAX = 6
_AFTERWARDS_RETRY = dt.timedelta(minutes=1)
#: So long after its time a backup may wait for what tries it.
_VERIFY_WITHIN = dt.timedelta(days=1)
#: So often a backup is tried, if not its own fault but something that passes was in the way,
#: and so long after the first time; it doubles.
_VERIFY_TRIES = 3
_VERIFY_RETRY = dt.timedelta(minutes=5)
#: What a retention could not remove until then goes after the next backup.
_PRUNE_FOR = dt.timedelta(days=1)

#: Nobody's fault, and gone by itself.
_IN_THE_WAY = frozenset({InstanceBusy.code, Conflict.code, "host_busy"})
#: How a trial ends that need not be repeated: the image is no good, or gone, or somebody
#: wanted no trial.
_SAYS_ENOUGH = frozenset(
    {
        "image_does_not_boot",
        "unsafe_image",
        "broken_chain",
        "foreign_parent",
        "disk_format_unrecorded",
        "unusable_image",
        "image_too_large",
        "job_gone",
        VerifyFailed.code,
        ImageNotFound.code,
        JobCancelled.code,
    }
)
_NOTHING_WRONG: Mapping[str, None] = {"reason": None, "reason_code": None, "retry_at": None}
_PASSING = (InstanceBusy, Conflict, OverQuota, DeadlinePassed)
#: Of a context: what belongs to the request that made the policy, not to its runs.
_OF_REQUEST = ("request_id", "global_request_id", "resource_uuid", "auth_token")

#: Asks for a backup to be tried, and returns the job that does so.
Verify = Callable[[RequestContext, Job], Job]


@dataclasses.dataclass(slots=True, kw_only=True)
class Round:
    """One look at all runs, one after the other, and what was met on the way."""

    #: How many backups of policies each host has at hand.
    at_work: Counter[str]
    #: Glance was away: what else needs it waits for the next round. Each wait for its answer
    #: would make all others later.
    away: ImageServiceUnavailable | None = None

    def heed(self, error: StillframeError) -> None:
        """Remember that Glance is away, if that is what the error says."""
        if isinstance(error, ImageServiceUnavailable):
            self.away = error
            LOG.warning("What else needs the image service waits for the next round: %s", error)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRunner:
    """Looks at runs; thread-safe."""

    policies: Policies
    runs: PolicyRuns
    inventory: Inventory
    ledger: Ledger
    backups: Backups
    pruner: Pruner
    #: Tells the dispatcher of a job.
    poke: Callable[[str], None]
    #: Raises Forbidden unless the policy's maker may (still) have backups of an instance.
    require_allowed: Callable[[RequestContext, Instance], None]
    backups_per_host: int
    #: None: backups cannot be tried.
    verify: Verify | None = None

    def look_at(self, run: Run, round_: Round) -> None:
        """Do what can be done now."""
        policy = self.policies.find_readable(run.policy_id)
        if policy is None:
            return  # its runs are gone, too, or wait for who can read it
        caller = caller_of(policy, run)
        with context.bound(caller):
            LOOKS[run.state](self, policy, run, round_)

    def start(self, policy: Policy, run: Run, round_: Round) -> None:
        """Ask for the backup, if nothing is in the way."""
        known = self.ledger.find(_job_id(run)) if run.attempts else None
        if known is not None and known.state not in (JobState.ERROR, JobState.CANCELLED):
            self._was_asked(policy, run, known)  # by one that died before it could say so
            return
        instance = self.inventory.instance(run.instance_uuid)
        if instance is None or instance.project_id != policy.project_id:
            self._skip(policy, run, "the instance was deleted", "instance_not_found")
        elif not (policy.enabled or run.manual):
            self._skip(policy, run, "the policy was disabled", "policy_disabled")
        elif clock.now() >= run.give_up_at:
            self._give_up(policy, run)
        elif round_.at_work[instance.host] >= self.backups_per_host:
            words = "other backups of policies are at work on the instance's host"
            self._note(policy, run, words, "host_busy")
        elif round_.away is not None:
            self._note(policy, run, round_.away.message, round_.away.code)
        else:
            self._ask(policy, run, instance, round_)

    def follow(self, policy: Policy, run: Run, round_: Round) -> None:
        """See whether the backup is made."""
        job = self.ledger.find(run.job_id or "")
        if job is not None and job.state not in ENDED:
            return
        if job is None or job.state is not JobState.DONE:
            reason, code = (job.reason, job.reason_code) if job else ("its job is gone", "job_gone")
            self._end(policy, run, RunState.ERROR, reason or "the backup failed", code)
        elif policy.verify:
            self._have_verified(policy, run, job, round_)
        else:
            self._go_on_to_prune(policy, run, round_)

    def _have_verified(self, policy: Policy, run: Run, job: Job, round_: Round) -> None:
        if self.verify is None:
            words = "the backup was made, but this cloud cannot verify it"
            self._end(policy, run, RunState.ERROR, words, "cannot_verify")
            return
        if round_.away is not None:
            self._postpone(run, RunState.ASKED)
            return
        try:
            verifying = self.verify(caller_of(policy, run), job)
        except StillframeError as error:
            round_.heed(error)
            if _is_passing(error) and clock.now() - run.start_at < _VERIFY_WITHIN:
                self._postpone(run, RunState.ASKED)
            else:
                words = f"the backup was made, but could not be verified: {error.message}"
                self._end(policy, run, RunState.ERROR, words, error.code)
            return
        attempts = run.verify_attempts + 1
        begun = {"verify_job_id": verifying.id, "verify_attempts": attempts, **_NOTHING_WRONG}
        if self.runs.move(run, RunState.VERIFYING, **begun):
            self.poke(verifying.id)

    def follow_verification(self, policy: Policy, run: Run, round_: Round) -> None:
        """See whether the backup can be restored; one that cannot takes no other's place."""
        job = self.ledger.find(run.verify_job_id or "")
        if job is not None and job.state not in ENDED:
            return
        if job is not None and job.state is JobState.DONE:
            self._go_on_to_prune(policy, run, round_)
            return
        reason, code = (job.reason, job.reason_code) if job else ("its job is gone", "job_gone")
        words = f"the backup was made, but could not be verified: {reason}"
        if code in _SAYS_ENOUGH or run.verify_attempts >= _VERIFY_TRIES:
            self._end(policy, run, RunState.ERROR, words, code)
            return
        wait = _VERIFY_RETRY * 2 ** max(0, run.verify_attempts - 1)
        again = {"verify_job_id": None, "retry_at": clock.now() + wait}
        if self.runs.move(run, RunState.ASKED, **again, reason=words, reason_code=code):
            what = (policy.id, policy.name, run.instance_uuid, run.verify_attempts)
            LOG.warning("Policy %s (%s), instance %s, try %d: %s; tried again", *what, words)

    def prune(self, policy: Policy, run: Run, round_: Round) -> None:
        """Remove what the retention lets go."""
        if round_.away is not None:
            self._postpone(run, RunState.PRUNING)
            return
        try:
            is_settled = self.pruner.prune(policy, run.instance_uuid)
        except StillframeError as error:
            # Glance is away, or refuses to show an image.
            round_.heed(error)
            LOG.warning("What policy %s lets go is removed later: %s", policy.id, error)
            is_settled = False
        if not is_settled and clock.now() - run.start_at < _PRUNE_FOR:
            self._postpone(run, RunState.PRUNING)
            return
        if not is_settled:
            LOG.error("What policy %s lets go stays until its next backup", policy.id)
        self.runs.move(run, RunState.DONE)

    def _postpone(self, run: Run, state: RunState) -> None:
        # Also what was not tried, for the image service was away: else one after the other
        # would be the first of its round, and all else wait for them all.
        self.runs.move(run, state, retry_at=clock.now() + _AFTERWARDS_RETRY)

    def _go_on_to_prune(self, policy: Policy, run: Run, round_: Round) -> None:
        if self.runs.move(run, RunState.PRUNING, **_NOTHING_WRONG):
            self.prune(policy, dataclasses.replace(run, state=RunState.PRUNING), round_)

    def _ask(self, policy: Policy, run: Run, instance: Instance, round_: Round) -> None:
        now, attempts = clock.now(), run.attempts + 1
        wait_s = min(_RETRY_MAX_S, _RETRY_FIRST_S * 2 ** min(run.attempts, _DOUBLINGS_MAX))
        retry_at = min(now + dt.timedelta(seconds=wait_s), max(now, run.give_up_at))
        if not self.runs.move(run, RunState.WAITING, attempts=attempts, retry_at=retry_at):
            return  # another process has it
        run = dataclasses.replace(run, attempts=attempts)
        try:
            job = self._request(policy, run, instance)
        except StillframeError as error:
            round_.heed(error)
            if _is_passing(error):
                self._note(policy, run, error.message, error.code)
            else:
                self._end(policy, run, RunState.ERROR, error.message, error.code)
            return
        round_.at_work[job.host] += 1
        self._was_asked(policy, run, job)

    def _request(self, policy: Policy, run: Run, instance: Instance) -> Job:
        caller = caller_of(policy, run)
        self.require_allowed(caller, instance)
        wish = BackupWish(
            name=_image_name(policy, run, instance),
            backup_type=policy.name,
            rotation=None,
            options=SnapshotOptions(
                incremental=policy.incremental and not self._is_full_due(policy, run),
                freeze=policy.freeze,
            ),
        )
        return self.backups.request(caller, instance, wish, _job_id(run), policy_id=policy.id)

    def _is_full_due(self, policy: Policy, run: Run) -> bool:
        """Tell whether the newest backups are increments, as many as may be in a row."""
        if policy.full_every is None:
            return False
        most = policy.full_every - 1
        newest = self.runs.newest_jobs(policy.id, run.instance_uuid, most)
        increments = [one for job in newest for one in job.images[:1] if one.parent_image_id]
        return len(increments) == most

    def _was_asked(self, policy: Policy, run: Run, job: Job) -> None:
        if self.runs.move(run, RunState.ASKED, job_id=job.id, **_NOTHING_WRONG):
            what = (policy.id, policy.name, run.instance_uuid, job.id)
            LOG.info("Policy %s (%s) has a backup of instance %s made: job %s", *what)
            self.poke(job.id)

    def _note(self, policy: Policy, run: Run, reason: str, code: str) -> None:
        """Say what a run waits for, once for each thing."""
        if (reason, code) == (run.reason, run.reason_code):
            return
        what = (policy.id, policy.name, run.instance_uuid, reason)
        LOG.info("Policy %s (%s) waits for instance %s: %s", *what)
        self.runs.move(run, RunState.WAITING, reason=reason, reason_code=code)

    def _give_up(self, policy: Policy, run: Run) -> None:
        reason = run.reason or "nothing could be asked for in time"
        is_skipped = run.reason_code is None or run.reason_code in _IN_THE_WAY
        state = RunState.SKIPPED if is_skipped else RunState.ERROR
        code = run.reason_code or DeadlinePassed.code
        self._end(policy, run, state, f"{reason} (given up when it was too late to begin)", code)

    def _skip(self, policy: Policy, run: Run, reason: str, code: str) -> None:
        self._end(policy, run, RunState.SKIPPED, reason, code)

    def _end(
        self, policy: Policy, run: Run, state: RunState, reason: str, code: str | None
    ) -> None:
        if self.runs.move(run, state, reason=reason, reason_code=code):
            what = (policy.id, policy.name, run.instance_uuid, state, reason)
            LOG.warning("Policy %s (%s), instance %s: the run is %s: %s", *what)


Look = Callable[[PolicyRunner, Policy, Run, Round], None]

#: What is done with a run that has not ended.
LOOKS: Mapping[RunState, Look] = {
    RunState.WAITING: PolicyRunner.start,
    RunState.ASKED: PolicyRunner.follow,
    RunState.VERIFYING: PolicyRunner.follow_verification,
    RunState.PRUNING: PolicyRunner.prune,
}


def caller_of(policy: Policy, run: Run) -> RequestContext:
    """Return who a run is asked for by: the policy's maker, with a request id of the run's own."""
    kept = {name: value for name, value in policy.context.items() if name not in _OF_REQUEST}
    return context.from_wire({**kept, "request_id": f"req-{_job_id(run)}"}, run.instance_uuid)


def _is_passing(error: StillframeError) -> bool:
    return error.retryable or isinstance(error, _PASSING)


def _job_id(run: Run) -> str:
    """Return the id of the job of a run's newest attempt."""
    return str(uuid.uuid5(uuid.UUID(run.id), str(run.attempts)))


def _image_name(policy: Policy, run: Run, instance: Instance) -> str:
    at = f"-{run.counts_at:%Y%m%dT%H%M%SZ}"
    return f"{instance.name}-{policy.name}"[: _NAME_MAX - len(at)] + at
