# SPDX-License-Identifier: Apache-2.0
"""Jobs, as `/v1` shows them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from api_service.store.records import Job
from api_service.views.viewer import time_of


def job(job_: Job, *, sees_host: bool = False) -> dict[str, Any]:
    """Return a job of `/v1/jobs`; where it runs is for administrators."""
    capture = job_.capture.to_wire() if job_.capture else None
    return {
        "id": job_.id,
        "kind": job_.kind,
        "state": job_.state,
        "instance_uuid": job_.instance_uuid,
        "project_id": job_.project_id,
        "user_id": job_.user_id,
        "host": job_.host if sees_host else None,
        "image_id": job_.image_id or None,
        "step": job_.step,
        "progress": percent(job_),
        "bytes_done": job_.bytes_done,
        "bytes_total": job_.bytes_total,
        "rate_bytes_s": job_.rate_bytes_s,
        "eta_s": job_.eta_s,
        "size_bytes": job_.size_bytes,
        "sha512": job_.sha512,
        "pause_ms": job_.capture.pause_ms if job_.capture else None,
        "consistency": job_.capture.consistency if job_.capture else None,
        "capture": capture,
        "images": [image.to_wire() for image in job_.images],
        "options": {name: value for name, value in job_.options.items() if value is not None},
        "backup_type": job_.backup_type,
        "rotation": job_.rotation,
        "removed_at": time_of(job_.removed_at) if job_.removed_at else None,
        "cancel_asked_at": time_of(job_.cancel_asked_at) if job_.cancel_asked_at else None,
        "steps": [step.to_wire() for step in job_.steps],
        "reason": job_.reason,
        "reason_code": job_.reason_code,
        "created_at": time_of(job_.created_at),
        "accepted_at": time_of(job_.accepted_at) if job_.accepted_at else None,
        "finished_at": time_of(job_.finished_at) if job_.finished_at else None,
    }


def event_id(shown: dict[str, Any]) -> str:
    """Return the id of the event that shows a job so: another one when anything of it changes."""
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


def percent(job_: Job) -> int:
    """Return how far a job is, as far as that is known."""
    if job_.bytes_total <= 0:
        return 0
    return max(0, min(100, job_.bytes_done * 100 // job_.bytes_total))
