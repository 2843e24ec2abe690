# SPDX-License-Identifier: Apache-2.0
"""What a policy's retention lets go is removed: only images that its own jobs made.

Which those are the ledger tells; of an image's record only its status and
whether Glance protects it count. Removing can be repeated at any point.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections import Counter

from api_service import retention, rotation
from api_service.images import ImageRecords
from api_service.rotation import Rotation
from api_service.store.ledger import Ledger
from api_service.store.policy_records import Backup, Policy, Proof, Retention
from api_service.store.policy_runs import PolicyRuns
from common.glance import Image, ImageNotFound

LOG = logging.getLogger(__name__)


class Fate(enum.StrEnum):
    """What becomes of a backup."""

    KEPT = "kept"
    DELETED = "deleted"
    #: No rule keeps it, but its project has it protected in Glance.
    PROTECTED = "protected"
    #: Its image is not active, or it was to be verified and is not: it takes no other's place,
    #: and is left alone.
    NOT_COUNTED = "not_counted"
    #: Somebody removed it.
    GONE = "gone"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The fate of one backup, and the rules that keep it."""

    backup: Backup
    fate: Fate
    rules: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pruner:
    """Applies retentions, or tells what they would do."""

    runs: PolicyRuns
    ledger: Ledger
    images: ImageRecords
    rotation: Rotation

    def outlook(self, policy: Policy, wanted: Retention | None) -> list[Verdict]:
        """Return what would become of a policy's backups; raise ImageServiceUnavailable."""
        return [
            verdict
            for instance_uuid in self.runs.backed_up(policy.id)
            for verdict in self._judge(policy, instance_uuid, wanted)
            if verdict.fate is not Fate.GONE
        ]

    def prune(self, policy: Policy, instance_uuid: str) -> bool:
        """Remove what the policy's retention lets go of an instance's backups.

        False: something must wait for an increment that is being made. Raises
        ImageServiceUnavailable; then what is left is for another time.
        """
        verdicts = self._judge(policy, instance_uuid, policy.retention)
        goes = [one.backup.job_id for one in verdicts if one.fate in (Fate.DELETED, Fate.GONE)]
        jobs = [job for job in map(self.ledger.find, goes) if job is not None]
        outcome = self.rotation.remove_all(jobs)
        counts = Counter(str(one.fate) for one in verdicts)
        words = ", ".join(f"{count} {fate}" for fate, count in sorted(counts.items()))
        LOG.info("Retention of policy %s (%s): %s", policy.id, policy.name, words)
        return rotation.Fate.AWAITED not in outcome

    def _judge(self, policy: Policy, instance_uuid: str, wanted: Retention | None) -> list[Verdict]:
        """Return the verdicts, newest first."""
        own, others = self.runs.backups(policy.id, instance_uuid)
        fates = {backup.job_id: self._look(policy, backup) for backup in own}
        counted = [one for one in own if fates[one.job_id] in (Fate.KEPT, Fate.PROTECTED)]
        stays = [one for one in own if fates[one.job_id] in (Fate.NOT_COUNTED, Fate.PROTECTED)]
        decisions = retention.decide(
            counted,
            wanted,
            policy.time_zone,
            [*others, *stays],
            verified_apart=policy.verify,
        )
        verdicts = [
            Verdict(backup=one.backup, fate=_fate(one, fates[one.backup.job_id]), rules=one.rules)
            for one in decisions
        ]
        rest = (one for one in own if fates[one.job_id] in (Fate.NOT_COUNTED, Fate.GONE))
        return verdicts + [Verdict(backup=one, fate=fates[one.job_id]) for one in rest]

    def _look(self, policy: Policy, backup: Backup) -> Fate:
        """Tell how a backup stands before any rule: KEPT is one that counts.

        It stands while the root disk's image does, which is removed last.
        """
        found = {image.id: image for image in map(self._find, backup.image_ids) if image}
        root = found.get(backup.image_ids[0])
        if root is None:
            return Fate.GONE
        is_unproven = policy.verify and backup.proof is Proof.UNPROVEN
        if root.status != "active" or is_unproven:
            return Fate.NOT_COUNTED
        is_protected = any(image.is_protected for image in found.values())
        return Fate.PROTECTED if is_protected else Fate.KEPT

    def _find(self, image_id: str) -> Image | None:
        try:
            image: Image = self.images.look(image_id)
        except ImageNotFound:
            return None
        return image


def _fate(decision: retention.Decision, before: Fate) -> Fate:
    if decision.rules:
        return Fate.KEPT
    return Fate.PROTECTED if before is Fate.PROTECTED else Fate.DELETED
