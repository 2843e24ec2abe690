# SPDX-License-Identifier: Apache-2.0
"""Which backups go when a new one is done, and their removal: one by one, counted.

Nova asks Glance for images that look like backups, and counts those that never became
active, or that somebody made look so. Here only those count that the ledger made for this
instance and type and that are active now; nothing goes unless the new one is, too.
"""

from __future__ import annotations

import collections
import enum
import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from api_service.images import ImageRecords
from api_service.store.backups import BackupList
from api_service.store.records import Job
from common.glance import Image, ImageNotFound, ImageRefused

LOG = logging.getLogger(__name__)

#: Chooses, among backups that are active, newest first, those that a policy keeps.
Retention = Callable[[str, Sequence[Job]], Collection[Job]]


class Fate(enum.StrEnum):
    """What became of a backup that should go."""

    REMOVED = "removed"
    #: Glance deletes a protected image for nobody.
    PROTECTED = "protected"
    #: An increment that stands lies on it.
    NEEDED = "needed by an increment"
    #: An increment that is being made may come to lie on it.
    AWAITED = "waiting for an increment"
    REFUSED = "refused by the image service"


class Rotation:
    """Removes backups; `retention` says what a policy keeps (by default: everything)."""

    def __init__(
        self,
        backups: BackupList,
        images: ImageRecords,
        retention: Retention = lambda _policy_id, active: active,
    ) -> None:
        self._backups = backups
        self._images = images
        self._retention = retention

    def settle(self, job: Job) -> bool:
        """Let a backup that is done take the place of others; False: some must wait.

        May be repeated, also after it was broken off anywhere. Raises ImageServiceUnavailable.
        """
        if self._backups.has_open_increment(job.instance_uuid):
            LOG.debug("The rotation after job %s waits for an increment", job.id)
            return False
        fates = self.remove_all(self.outdated_by(job))
        if Fate.AWAITED in fates:
            return False
        self._backups.was_rotated(job.id)
        if fates:
            LOG.info("Rotation of %s backups after job %s: %s", *_words(job, fates))
        return True

    def outdated_by(self, job: Job) -> list[Job]:
        """Return the backups whose place a done one takes, newest first. Removes nothing.

        Raises ImageServiceUnavailable.
        """
        active = self.active(self._backups.standing(job))
        if job.rotation != 0 and job.id not in {one.id for one in active}:
            LOG.warning("Backup image %s is not active any more: nothing goes", job.image_id)
            return []
        if job.rotation is not None:
            return active[job.rotation :]
        if job.policy_id is None:
            return []
        kept = {one.id for one in self._retention(job.policy_id, active)}
        return [one for one in active if one.id not in kept]

    def active(self, jobs: Iterable[Job]) -> list[Job]:
        """Return those whose image is active now; notes which are gone.

        Raises ImageServiceUnavailable.
        """
        active = []
        for job in jobs:
            image = self._find(job.image_id)
            if image is None:
                LOG.info("Backup image %s is gone already", job.image_id)
                self._backups.was_removed(job.id)
            elif image.status == "active":
                active.append(job)
        return active

    def remove_all(self, jobs: Iterable[Job]) -> list[Fate]:
        """Remove backups, newest first, so that no increment loses what it lies on before it goes.

        Raises ImageServiceUnavailable.
        """
        newest_first = sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)
        return [self.remove(job) for job in newest_first]

    def remove(self, job: Job) -> Fate:
        """Remove the images of one backup, unless something speaks against it; gone ones are fine.

        Raises ImageServiceUnavailable.
        """
        fate = self._remove(job)
        if fate is Fate.REMOVED:
            self._backups.was_removed(job.id)
            LOG.info("Removed backup image %s of job %s", job.image_id, job.id)
        else:
            LOG.info("Backup image %s stays for now: it is %s", job.image_id, fate)
        return fate

    def _remove(self, job: Job) -> Fate:
        found = [image for image in map(self._find, job.image_ids) if image is not None]
        if any(image.is_protected for image in found):
            return Fate.PROTECTED
        if any(map(self._find, self._backups.increments_on(job))):
            return Fate.NEEDED
        if self._backups.has_open_increment(job.instance_uuid):
            return Fate.AWAITED
        # The root disk's goes last: while it stands, this backup does.
        for image in reversed(found):
            try:
                self._images.delete(image.id)
            except ImageRefused as error:
                LOG.warning("Backup image %s cannot be removed: %s", image.id, error)
                return Fate.REFUSED
        return Fate.REMOVED

    def _find(self, image_id: str) -> Image | None:
        try:
            image: Image = self._images.look(image_id)
        except ImageNotFound:
            return None
        return image


def _words(job: Job, fates: Sequence[Fate]) -> tuple[str | None, str, str]:
    counts = collections.Counter(fates)
    return job.backup_type, job.id, ", ".join(f"{counts[fate]} {fate}" for fate in counts)
