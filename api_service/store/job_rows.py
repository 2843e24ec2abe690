# SPDX-License-Identifier: Apache-2.0
"""What the row of a job holds before anything is done for it."""

from __future__ import annotations

import dataclasses
from typing import Any

from api_service.store.models import JobRow
from api_service.store.records import NewJob
from common import clock
from common.states import JobState

NOTHING_DONE: dict[str, Any] = {
    "bytes_done": 0,
    "bytes_total": 0,
    "rate_bytes_s": 0.0,
    "steps": [],
    "images": [],
    "discard_image": False,
    "limit_due": False,
    "rotation_due": False,
}


def new_row(new: NewJob) -> JobRow:
    """Return the row of a job that nobody has yet."""
    return JobRow(
        id=new.id,
        kind=new.kind,
        state=JobState.PENDING,
        instance_uuid=new.instance.uuid,
        project_id=new.instance.project_id,
        user_id=new.user_id,
        host=new.instance.host,
        image_id=new.image_id,
        options=new.options,
        context=new.context,
        castable=new.castable,
        created_at=clock.now(),
        deadline_at=new.deadline_at,
        **(dataclasses.asdict(new.backup) if new.backup else {}),
        **NOTHING_DONE,
    )
