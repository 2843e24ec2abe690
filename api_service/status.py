# SPDX-License-Identifier: Apache-2.0
"""What the agents report, taken into the database: RPC topic `stillframe-api`.

Reports may be doubled, reordered or from an agent that got its job from
somebody else; the ledger makes all of that harmless. Nothing here waits for
Glance: the image of a failed job is the reaper's to remove. docs/rpc.md is the
contract.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from api_service.agents import Agents
from api_service.errors import HostNameTaken
from api_service.store.inventory import Inventory
from api_service.store.ledger import Ledger
from common import context
from common.reports import HostReport, JobAccepted, JobOutcome, JobProgress, ReportTaken
from common.states import IMAGE_KINDS, JobState

LOG = logging.getLogger(__name__)

_MIB = 2**20


class StatusEndpoint:
    """The methods that agents call."""

    def __init__(
        self,
        ledger: Ledger,
        inventory: Inventory,
        agents: Agents,
        backup_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._inventory = inventory
        self._agents = agents
        self._backup_done = backup_done
        self._refused: set[str | None] = set()

    def host_report(self, _caller: context.RequestContext, **arguments: Any) -> dict[str, Any]:
        """Take a heartbeat (HostReport), or answer why not (ReportTaken)."""
        report = HostReport.from_wire(arguments.get("report"))
        try:
            is_new = self._inventory.take(report, self._agents.is_up)
        except HostNameTaken as error:
            if report.agent_id not in self._refused:
                self._refused.add(report.agent_id)
                LOG.error("Refused the reports of agent %s: %s", report.agent_id, error)
            return ReportTaken(taken=False, reason=error.message).to_wire()
        if is_new:
            LOG.info(
                "A new compute agent reports: host %s, release %s", report.host, report.release
            )
        return ReportTaken(taken=True).to_wire()

    def job_accepted(self, caller: context.RequestContext, **arguments: Any) -> None:
        """Take the agent's word that it has a job (JobAccepted)."""
        report = JobAccepted.from_wire(arguments.get("report"))
        with _bound(caller, report.instance.uuid):
            if self._ledger.record(report, caller.to_dict()):
                LOG.info("Job %s came to host %s directly", report.job_id, report.host)
            if self._ledger.accept(report) is not None:
                LOG.info("Job %s accepted by the agent of host %s", report.job_id, report.host)

    def job_progress(self, _caller: context.RequestContext, **arguments: Any) -> None:
        """Take how far a job is (JobProgress)."""
        self._ledger.progress(JobProgress.from_wire(arguments.get("report")))

    def job_finished(self, caller: context.RequestContext, **arguments: Any) -> dict[str, bool]:
        """Take how a job ended (JobOutcome); the answer confirms that it is recorded."""
        outcome = JobOutcome.from_wire(arguments.get("report"))
        with _bound(caller, outcome.instance.uuid):
            if outcome.instance.uuid:
                self._ledger.record(outcome, caller.to_dict())
            job = self._ledger.finish(outcome)
            if job is not None:
                self._tell(outcome)
                if job.rotation_due:
                    self._backup_done()
            elif self._ledger.find(outcome.job_id) is None:
                LOG.warning(
                    "Dropped the outcome of job %s, which names no ids: %s",
                    outcome.job_id,
                    outcome.reason,
                )
        return {"recorded": True}

    def _tell(self, outcome: JobOutcome) -> None:
        took_s = outcome.finished_at - outcome.accepted_at
        if outcome.state is not JobState.DONE:
            LOG.error(
                "Job %s (%s%s) ended in %s after %.1f s: %s",
                outcome.job_id,
                outcome.kind,
                f" to image {outcome.image_id}" if outcome.kind in IMAGE_KINDS else "",
                outcome.state,
                took_s,
                outcome.reason,
            )
            return
        if outcome.kind not in IMAGE_KINDS:
            LOG.info("Job %s (%s) done after %.1f s", outcome.job_id, outcome.kind, took_s)
            return
        figures = outcome.capture
        paused = f"{figures.pause_ms:.1f} ms" if figures and figures.pause_ms else "not"
        LOG.info(
            "%s image %s active after %.1f s: %.0f MiB, guest paused %s, method %s",
            outcome.kind.capitalize(),
            outcome.image_id,
            took_s,
            (outcome.size_bytes or 0) / _MIB,
            paused,
            figures.method if figures else "unknown",
        )


def _bound(caller: context.RequestContext, instance_uuid: str) -> Any:
    caller.resource_uuid = instance_uuid
    return context.bound(caller)
