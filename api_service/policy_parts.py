# SPDX-License-Identifier: Apache-2.0
"""Wires what backup policies are made of, of the API's other parts."""

from __future__ import annotations

import dataclasses

from api_service.backup_policies import BackupPolicies
from api_service.backups import Backups
from api_service.dispatcher import Dispatcher
from api_service.images import ImageRecords
from api_service.policy_runner import PolicyRunner, Verify
from api_service.pruning import Pruner
from api_service.rotation import Rotation
from api_service.scheduler import Scheduler
from api_service.store.backups import BackupList
from api_service.store.engine import Database
from api_service.store.policies import Policies
from api_service.store.policy_runs import PolicyRuns
from api_service.visibility import Visibility

_CREATE_BACKUP = "os_compute_api:os-create-backup"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLimits:
    """What an operator sets: see the options of [policies], and [quota] policies."""

    backups_per_host: int = 2
    min_interval_s: float = 900.0
    missed_after_s: float = 300.0
    history_days: int = 90
    #: Policies of a project; None: any number.
    most: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyParts:
    """What the resources, and the scheduler, work with."""

    database: Database
    book: BackupPolicies
    pruner: Pruner
    runner: PolicyRunner
    limits: PolicyLimits

    def scheduler(self, interval_s: float) -> Scheduler:
        """Return the service that runs the policies."""
        return Scheduler(
            database=self.database,
            book=self.book,
            runner=self.runner,
            interval_s=interval_s,
            missed_after_s=self.limits.missed_after_s,
            history_days=self.limits.history_days,
        )


def make_policy_parts(
    *,
    database: Database,
    visibility: Visibility,
    images: ImageRecords,
    backups: Backups,
    dispatcher: Dispatcher,
    limits: PolicyLimits,
    verify: Verify | None = None,
) -> PolicyParts:
    """Wire them; without `verify`, what tries a backup, no policy may ask for it."""
    runs, ledger, inventory = PolicyRuns(database), visibility.ledger, visibility.inventory
    book = BackupPolicies(
        policies=Policies(database),
        runs=runs,
        inventory=inventory,
        most=limits.most,
        min_interval_s=limits.min_interval_s,
        can_verify=verify is not None,
    )
    rotation = Rotation(BackupList(database), images)
    pruner = Pruner(runs=runs, ledger=ledger, images=images, rotation=rotation)
    runner = PolicyRunner(
        policies=book.policies,
        runs=runs,
        inventory=inventory,
        ledger=ledger,
        backups=backups,
        pruner=pruner,
        poke=dispatcher.poke,
        require_allowed=lambda caller, instance: visibility.authorizer.require(
            caller, _CREATE_BACKUP, instance.project_id
        ),
        backups_per_host=limits.backups_per_host,
        verify=verify,
    )
    return PolicyParts(database=database, book=book, pruner=pruner, runner=runner, limits=limits)
