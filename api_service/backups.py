# SPDX-License-Identifier: Apache-2.0
"""The use case "take a backup of this instance": a snapshot that takes the place of older ones.

Taking it is what `snapshots` does; which older ones go, once it is done, is `rotation`'s to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from api_service.snapshots import Snapshots, SnapshotWish
from api_service.store.records import BackupTerms, Instance, Job
from common.context import RequestContext
from common.messages import SnapshotOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BackupWish:
    """What the caller asked for."""

    name: str
    #: As its user calls it ("daily"); each type of an instance is rotated by itself.
    backup_type: str
    #: How many of the type are kept, this one among them; 0: not even this one. None: as a
    #: policy says.
    rotation: int | None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: SnapshotOptions = dataclasses.field(default_factory=SnapshotOptions)

    @classmethod
    def of(
        cls, name: str, backup_type: str, rotation: int | None, metadata: Mapping[str, str]
    ) -> BackupWish:
        """Take the options out of the metadata; raises BadRequest as `SnapshotWish.of` does."""
        wish = SnapshotWish.of(name, metadata)
        return cls(
            name=name,
            backup_type=backup_type,
            rotation=rotation,
            metadata=wish.metadata,
            options=wish.options,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backups:
    """Requests backups."""

    snapshots: Snapshots

    def request(
        self,
        caller: RequestContext,
        instance: Instance,
        wish: BackupWish,
        job_id: str | None = None,
        policy_id: str | None = None,
    ) -> Job:
        """Make a job of a wish; it is cast by whoever the caller tells of it.

        It takes `job_id` for its own, if one is given. Raises what `Snapshots.request` raises;
        then nothing is left behind.
        """
        terms = BackupTerms(
            backup_type=wish.backup_type, rotation=wish.rotation, policy_id=policy_id
        )
        snapshot = SnapshotWish(
            name=wish.name, metadata=wish.metadata, options=wish.options, backup=terms
        )
        return self.snapshots.request(caller, instance, snapshot, job_id)
