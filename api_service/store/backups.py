# SPDX-License-Identifier: Apache-2.0
"""Which backups stand, and whose turn it is to take the place of others.

All of it is the ledger's own word: what stands on an image can be written by its user.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, or_, select, update

from api_service.store import records
from api_service.store.engine import Database, retried
from api_service.store.models import JobRow
from api_service.store.readable import readable
from api_service.store.records import Job
from common import clock
from common.states import IMAGE_KINDS, OPEN, JobKind, JobState


class BackupList:
    """The backups of the ledger; thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self) -> list[Job]:
        """Return the backups that are done and have not yet taken the place of others."""
        with self._database.read() as session:
            rows = session.scalars(_newest_first(JobRow.rotation_due.is_(True)))
            return readable("Job", rows, records.job)

    def standing(self, job: Job) -> list[Job]:
        """Return a backup and those before it of its instance, type and policy, newest first.

        Those whose images were removed, or that never came to be, are left out.
        """
        is_before = or_(
            JobRow.created_at < job.created_at,
            (JobRow.created_at == job.created_at) & (JobRow.id <= job.id),
        )
        found = self._jobs(
            JobRow.kind == JobKind.BACKUP,
            JobRow.state == JobState.DONE,
            JobRow.removed_at.is_(None),
            JobRow.instance_uuid == job.instance_uuid,
            JobRow.backup_type == job.backup_type,
            JobRow.policy_id.is_(None) if not job.policy_id else JobRow.policy_id == job.policy_id,
            is_before,
        )
        # To MariaDB a space at the end makes no difference.
        return [one for one in found if one.backup_type == job.backup_type]

    def increments_on(self, job: Job) -> list[str]:
        """Return the ids of the images that were made as increments on the images of a job."""
        later = self._jobs(
            JobRow.instance_uuid == job.instance_uuid,
            JobRow.kind.in_(IMAGE_KINDS),
            JobRow.state == JobState.DONE,
            JobRow.removed_at.is_(None),
            JobRow.created_at >= job.created_at,
        )
        return [
            image.image_id
            for one in later
            for image in one.images
            if image.parent_image_id in job.image_ids
        ]

    def has_open_increment(self, instance_uuid: str) -> bool:
        """Tell whether an image is being made that may come to lie on an earlier one.

        What an agent was asked for by somebody else is not known here.
        """
        open_jobs = self._jobs(
            JobRow.instance_uuid == instance_uuid,
            JobRow.kind.in_(IMAGE_KINDS),
            JobRow.state.in_(list(OPEN)),
        )
        return any(job.options.get("incremental") or not job.options for job in open_jobs)

    def was_removed(self, job_id: str) -> None:
        """Note that nothing is left of a backup's images."""
        self._set(job_id, removed_at=clock.now())

    def was_rotated(self, job_id: str) -> None:
        """Note that a backup has taken the place of others, as far as it could."""
        self._set(job_id, rotation_due=False)

    def _jobs(self, *conditions: ColumnElement[bool]) -> list[Job]:
        # One that cannot be read may be an increment on one that is to go: then nothing goes.
        with self._database.read() as session:
            return [records.job(row) for row in session.scalars(_newest_first(*conditions))]

    @retried
    def _set(self, job_id: str, **values: Any) -> None:
        with self._database.write() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))


def _newest_first(*conditions: ColumnElement[bool]) -> Select[JobRow]:
    return select(JobRow).where(*conditions).order_by(JobRow.created_at.desc(), JobRow.id.desc())
