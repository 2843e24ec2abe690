# SPDX-License-Identifier: Apache-2.0
"""Backup policies, their runs and what becomes of their backups, as `/v1` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api_service.store.policy_records import Backup, Policy, Run
from api_service.views.viewer import time_of


def policy(policy_: Policy, given: dict[str, Any]) -> dict[str, Any]:
    """Return a policy of `/v1/policies`, beginning with what was `given` to make it."""
    due_at = policy_.next_due_at
    return {
        **given,
        "id": policy_.id,
        "project_id": policy_.project_id,
        "user_id": policy_.user_id,
        "next_due_at": time_of(due_at) if due_at else None,
        "created_at": time_of(policy_.created_at),
        "updated_at": time_of(policy_.updated_at),
    }


def run(run_: Run) -> dict[str, Any]:
    """Return a run of a policy."""
    return {
        "id": run_.id,
        "policy_id": run_.policy_id,
        "instance_uuid": run_.instance_uuid,
        "state": run_.state,
        "manual": run_.manual,
        "due_at": time_of(run_.due_at),
        "start_at": time_of(run_.start_at),
        "give_up_at": time_of(run_.give_up_at),
        "attempts": run_.attempts,
        "job_id": run_.job_id,
        "verify_job_id": run_.verify_job_id,
        "reason": run_.reason,
        "reason_code": run_.reason_code,
        "finished_at": time_of(run_.finished_at) if run_.finished_at else None,
    }


def backup(backup_: Backup, fate: str, rules: Sequence[str]) -> dict[str, Any]:
    """Return a backup of a policy, what becomes of it, and the rules that keep it."""
    return {
        "job_id": backup_.job_id,
        "instance_uuid": backup_.instance_uuid,
        "image_ids": list(backup_.image_ids),
        "at": time_of(backup_.at),
        "fate": fate,
        "rules": list(rules),
    }
