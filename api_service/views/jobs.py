# SPDX-License-Identifier: Apache-2.0
"""Jobs, as `/v1/jobs` shows them."""

from __future__ import annotations

from typing import Any

from api_service.store.records import Job
from api_service.views.viewer import time_of


def job(job_: Job) -> dict[str, Any]:
    """Return a job of `/v1/jobs`."""
    capture = job_.capture.to_wire() if job_.capture else None
    return {
        "id": job_.id,
        "kind": job_.kind,
        "state": job_.state,
        "instance_uuid": job_.instance_uuid,
        "project_id": job_.project_id,
        "user_id": job_.user_id,
        "image_id": job_.image_id or None,
        "step": job_.step,
        "progress": job_.bytes_done * 100 // job_.bytes_total if job_.bytes_total else 0,
        "bytes_done": job_.bytes_done,
        "bytes_total": job_.bytes_total,
        "rate_bytes_s": job_.rate_bytes_s,
        "eta_s": job_.eta_s,
        "size_bytes": job_.size_bytes,
        "sha512": job_.sha512,
        "capture": capture,
        "images": [image.to_wire() for image in job_.images],
        "options": {name: value for name, value in job_.options.items() if value is not None},
        "cancel_asked_at": time_of(job_.cancel_asked_at) if job_.cancel_asked_at else None,
        "steps": [step.to_wire() for step in job_.steps],
        "reason": job_.reason,
        "reason_code": job_.reason_code,
        "created_at": time_of(job_.created_at),
        "accepted_at": time_of(job_.accepted_at) if job_.accepted_at else None,
        "finished_at": time_of(job_.finished_at) if job_.finished_at else None,
    }
