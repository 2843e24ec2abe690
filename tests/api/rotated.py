# SPDX-License-Identifier: Apache-2.0
"""An instance's backups, taken and rotated, as tests of the rotation ask for them."""

from __future__ import annotations

from typing import Any

from common.reports import DiskImage, InstanceRecord
from common.states import JobKind, JobState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud


class Rotated:
    """An instance's backups; `take` makes one, `standing` tells which images are left of them."""

    def __init__(self, cloud: Cloud, instance: InstanceRecord) -> None:
        self.cloud, self.instance = cloud, instance
        self.made: list[str] = []

    def take(self, rotation: int, state: JobState = JobState.DONE, **changes: Any) -> str:
        """Take a backup to its end; return its image's id."""
        image_id, job_id = self.ask(rotation, **changes)
        self.end(job_id, image_id, state)
        return image_id

    def ask(self, rotation: int, **changes: Any) -> tuple[str, str]:
        """Ask for a backup; return the ids of its image and job."""
        reply = self.cloud.backup(self.instance.uuid, rotation, **changes)
        assert reply.status_code == 202, reply.text
        image_id: str = reply.json["image_id"]
        self.made.append(image_id)
        return image_id, self.cloud.casts.next()["job_id"]

    def end(
        self,
        job_id: str,
        image_id: str,
        state: JobState = JobState.DONE,
        *,
        parent: str | None = None,
        disks: tuple[str, ...] = (),
        kind: JobKind = JobKind.BACKUP,
    ) -> None:
        """Let the agent say that a job has ended, having done what it says."""
        made = [DiskImage(image_id=image_id, disk="vda", parent_image_id=parent)]
        made += [DiskImage(image_id=one, disk=f"vd{n}") for n, one in enumerate(disks)]
        if state is JobState.DONE:
            for image in made:
                self.cloud.images.activate(image.image_id)
        said = {"state": state, "images": tuple(made), "kind": kind}
        outcome = agent_says.finished(job_id, self.instance.uuid, image_id, **said)
        self.cloud.report("job_finished", outcome)

    def increment(self, rotation: int, parent: str) -> str:
        """Take a backup that lies on another."""
        image_id, job_id = self.ask(rotation, metadata={"stillframe:incremental": "true"})
        self.end(job_id, image_id, parent=parent)
        return image_id

    def round(self) -> list[str]:
        """Let the rotator look; return what is left, as it was made."""
        assert self.cloud.rotator.round()
        return self.standing()

    def standing(self) -> list[str]:
        """Return the images that are left."""
        return [image_id for image_id in self.made if image_id in self.cloud.images.records]
