# SPDX-License-Identifier: Apache-2.0
"""`stillframe-compute`: the composition root of the agent, and the only reader of its CONF."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TypeVar

from oslo_config import cfg
from oslo_log import log as oslo_log

from common import conf, daemon, log, rpc
from common.errors import ConfigurationError, StillframeError
from common.glance import ImageService
from common.messages import API_TOPIC, COMPUTE_TOPIC, RPC_VERSION
from common.states import DISK_KINDS, IMAGE_KINDS, POWER_KINDS, JobKind
from compute_agent import lock, release, snapshot
from compute_agent.announcer import Announcer
from compute_agent.capture.workspace import Directories
from compute_agent.disks import buffers
from compute_agent.endpoint import Endpoint
from compute_agent.guest import accelerator
from compute_agent.guest.connection import Hypervisor
from compute_agent.guest.metadata import Owner
from compute_agent.increments import Increments
from compute_agent.jobs import Jobs, Runner
from compute_agent.journal import Journal
from compute_agent.places import Places
from compute_agent.power import Powers
from compute_agent.proofs import ProofSettings
from compute_agent.rebuild import Rebuilds
from compute_agent.rebuild_run import RebuildSettings
from compute_agent.recovery import Recovery
from compute_agent.reporter import Reporter
from compute_agent.restore.model import RestoreSettings
from compute_agent.restore.restorer import Restorer
from compute_agent.sentinel import Sentinel
from compute_agent.spawn import Spawns
from compute_agent.stream.throttle import Throttle
from compute_agent.tools import Settings, Tools
from compute_agent.trial import Trials, TrialSettings

LOG = logging.getLogger(__name__)

Work = TypeVar("Work")

PROG = "stillframe-compute"
LOG_FILE = "n-cpu.log"

#: How long the API may take to confirm an outcome before it is told again.
_CALL_TIMEOUT_S = 30.0
#: And how long to say that it has a heartbeat: the next one comes soon.
_REPORT_TIMEOUT_S = 5.0
_MB = 10**6
_MIB = 1 << 20
_GIB = 1 << 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until it is told to stop; return the process's exit code."""
    try:
        settings = conf.load(sys.argv[1:] if argv is None else argv, PROG)
        log.setup(settings, LOG_FILE)
        buffers.keep()
        daemon.lead_process_group()
        agent = Agent(settings)
    except (StillframeError, cfg.Error) as error:
        return daemon.fail(f"{PROG} cannot start: {error}")
    return agent.run()


class Agent:
    """Every part of the agent, wired; `run` lives until a signal ends it."""

    def __init__(self, settings: cfg.ConfigOpts) -> None:
        self._settings = settings
        self._lock = _only_agent_of(Path(settings.state_path), settings.host)
        agent_id = _agent_id(Path(settings.state_path))
        transport = rpc.Transport(settings, name=f"{PROG}-{agent_id}")
        client = transport.client(topic=API_TOPIC, version=RPC_VERSION, timeout_s=_CALL_TIMEOUT_S)
        journal = Journal(Path(settings.state_path) / "journal.sqlite")
        images = ImageService(conf.glance.settings(settings))
        self.increments = _increments(settings, images)
        self.throttle = Throttle(settings.capture.bandwidth_limit * _MB)
        self.hypervisor = _hypervisor(settings)
        sentinel = Sentinel(settings.libvirt.connection_uri, budget_s=settings.capture.pause_budget)
        self.reporter = Reporter(
            client, journal, progress_interval_s=settings.agent.progress_interval
        )
        tools = Tools(
            hypervisor=self.hypervisor,
            images=images,
            journal=journal,
            increments=self.increments,
            directories=_directories(settings),
            throttle=self.throttle,
            sentinel=sentinel,
            restorer=_restorer(settings, images, self.throttle),
            settings=_snapshot_settings(settings),
        )
        self.pipeline = snapshot.Pipeline(tools)
        self.powers = Powers(tools, shutdown_timeout_s=settings.shutdown_timeout)
        self.rebuilds = Rebuilds(tools, _rebuild_settings(settings))
        births = _Births(settings, tools)
        self.jobs = jobs = Jobs(
            self._runners() | births.runners,
            host=settings.host,
            limit=settings.max_concurrent_snapshots,
            reports=self.reporter,
        )
        endpoint = Endpoint(host=settings.host, journal=journal, jobs=jobs, reporter=self.reporter)
        undo = _of_kinds(self.pipeline.recover, self.rebuilds.recover) | births.undo
        recovery = Recovery(undo, host=settings.host, tools=tools, jobs=jobs, reports=self.reporter)
        recovery.sweep = births.sweep
        server = _server(settings, transport, endpoint)
        self.announcer = _announcer(settings, transport, self.hypervisor, journal, agent_id)
        self.announcer.free_disk_gib = births.places.free_disk_gib
        self._listen()
        # In this order they start; in the reverse they stop: first no more
        # messages, last the way to tell how things ended.
        first: list[daemon.Service] = [sentinel, self.hypervisor, self.reporter]
        again = release.Again(tools, sweep=lambda: births.sweep(jobs.busy))
        self._services = [*first, recovery, again, jobs, server, self.announcer]

    def _runners(self) -> dict[JobKind, Runner]:
        return {
            **_of_kinds(self.pipeline.run, self.rebuilds.run),
            **dict.fromkeys(POWER_KINDS, self.powers.run),
        }

    def _listen(self) -> None:
        """Hear what happens to domains."""
        self.hypervisor.on_change = self.announcer.changed
        # Its increments are not forgotten: it may be defined again, with the same disk.
        self.hypervisor.on_undefined = self.jobs.instance_deleted
        self.hypervisor.on_io_error = self.jobs.instance_out_of_space

    def run(self) -> int:
        """Run until a signal; return the exit code."""
        process = daemon.Daemon(
            PROG,
            self._services,
            stop_timeout_s=self._settings.graceful_shutdown_timeout,
            reload=self.reload,
            healthy=self.healthy,
        )
        self.announcer.on_refused = process.fail
        try:
            self.announcer.claim_host()
            return process.run()
        except StillframeError as error:
            return daemon.fail(f"{PROG} ends: {error}")

    def healthy(self) -> bool:
        """Tell whether the working loops run (systemd's watchdog asks)."""
        return all(part.alive() for part in (self.hypervisor, self.reporter, self.announcer))

    def reload(self) -> None:
        """Read the mutable options again and pass them on; running jobs go on."""
        settings = self._settings
        conf.read_again(settings)
        # Everything is read before anything is obeyed: a value that cannot be changes nothing.
        rate_bytes_s = settings.capture.bandwidth_limit * _MB
        progress_s, report_s = settings.agent.progress_interval, settings.report_interval
        max_increments = settings.capture.max_increments
        rebuilds = _rebuild_settings(settings)
        snapshots, shutdown_s = _snapshot_settings(settings), settings.shutdown_timeout
        oslo_log.setup(settings, "stillframe")
        self.throttle.set_rate(rate_bytes_s)
        self.reporter.progress_interval_s = progress_s
        self.announcer.interval_s = report_s
        self.increments.max_length = max_increments
        self.pipeline.use(snapshots)
        self.rebuilds.settings = rebuilds
        self.powers.shutdown_timeout_s = shutdown_s


class _Births:
    """What makes instances, ends them and tries images out; `runners` do it, by kind of job."""

    def __init__(self, settings: cfg.ConfigOpts, tools: Tools) -> None:
        group = settings.spawn
        self.places = Places(root=Path(group.instances_directory))
        self.places.make()
        self._lock = self.places.hold(settings.host)
        # Found out with the first instance, and only once.
        virt_type = functools.cache(lambda: accelerator.virt_type(group.virt_type))
        spawns = Spawns(tools, self.places, virt_type)
        trials = Trials(tools, self.places, virt_type, _trial_settings(settings))
        self.runners: dict[JobKind, Runner] = {
            JobKind.CREATE: spawns.create,
            JobKind.DELETE: spawns.delete,
            JobKind.VERIFY: trials.verify,
        }
        self.undo = {JobKind.CREATE: spawns.recover, JobKind.VERIFY: trials.recover}
        self.sweep = spawns.sweep


def _trial_settings(settings: cfg.ConfigOpts) -> TrialSettings:
    group = settings.spawn
    try:
        marker = re.compile(group.verify_marker)
    except re.error as error:
        raise ConfigurationError(
            f"[spawn] verify_marker is no regular expression: {error}"
        ) from None
    return TrialSettings(
        memory_mib=group.verify_memory, timeout_s=group.verify_timeout, marker=marker
    )


def _only_agent_of(state_path: Path, host: str) -> IO[str]:
    """Hold the state directory; raise ConfigurationError if another agent has it."""
    state_path.mkdir(parents=True, exist_ok=True)
    try:
        return lock.hold(state_path / "agent.lock", host)
    except lock.Held as other:
        raise ConfigurationError(
            f"another agent ({other}) uses state_path = {state_path}; "
            f"stop it, or give this one a state_path and a host of its own (host = {host})"
        ) from None


def _agent_id(state_path: Path) -> str:
    """Return the id of this state directory's agent, the same over restarts."""
    path = state_path / "agent_id"
    with contextlib.suppress(FileNotFoundError, ValueError):
        return str(uuid.UUID(path.read_text().strip()))
    made = str(uuid.uuid4())
    path.write_text(made + "\n")
    return made


def _directories(settings: cfg.ConfigOpts) -> Directories:
    directories = Directories(
        scratch=Path(settings.capture.scratch_directory),
        sockets=Path(settings.capture.socket_directory),
    )
    directories.make()
    return directories


def _increments(settings: cfg.ConfigOpts, images: ImageService) -> Increments:
    directory = Path(settings.state_path) / "checkpoints"
    return Increments(directory, images, max_length=settings.capture.max_increments)


def _server(
    settings: cfg.ConfigOpts, transport: rpc.Transport, endpoint: Endpoint
) -> rpc.RpcService:
    return transport.service(
        topic=COMPUTE_TOPIC,
        host=settings.host,
        version=RPC_VERSION,
        endpoints=[endpoint],
        on_refused=endpoint.refuse_unknown,
    )


def _hypervisor(settings: cfg.ConfigOpts) -> Hypervisor:
    return Hypervisor(
        settings.libvirt.connection_uri,
        keepalive_interval_s=settings.libvirt.keepalive_interval,
        keepalive_count=settings.libvirt.keepalive_count,
    )


def _announcer(
    settings: cfg.ConfigOpts,
    transport: rpc.Transport,
    hypervisor: Hypervisor,
    journal: Journal,
    agent_id: str,
) -> Announcer:
    client = transport.client(topic=API_TOPIC, version=RPC_VERSION, timeout_s=_REPORT_TIMEOUT_S)
    project_id = settings.agent.default_project_id
    owner = None
    if project_id:
        user_id = settings.agent.default_user_id or project_id
        owner = Owner(project_id=project_id, user_id=user_id)
    return Announcer(
        client,
        hypervisor,
        host=settings.host,
        agent_id=agent_id,
        interval_s=settings.report_interval,
        full_every=settings.agent.full_report_every,
        default_owner=owner,
        open_jobs=journal.open_job_ids,
    )


def _restorer(settings: cfg.ConfigOpts, images: ImageService, throttle: Throttle) -> Restorer:
    options = settings.restore
    return Restorer(
        images,
        throttle,
        RestoreSettings(
            formats=frozenset(options.formats),
            max_virtual_bytes=options.max_size * _GIB,
            min_free_bytes=options.min_free * _MIB,
            retries=settings.glance.num_retries,
            qemu_img_memory_bytes=options.qemu_img_memory * _MIB,
            qemu_img_timeout_s=options.qemu_img_timeout,
            progress_log_interval_s=settings.agent.progress_log_interval,
        ),
    )


def _snapshot_settings(settings: cfg.ConfigOpts) -> Settings:
    return Settings(
        method=settings.capture.method,
        pause=settings.capture.pause,
        freeze=settings.capture.freeze,
        freeze_timeout_s=settings.capture.freeze_timeout,
        disks=settings.capture.disks,
        checkpoints=settings.capture.checkpoints,
        adaptive=settings.capture.bandwidth_mode == "adaptive",
        latency_factor=settings.capture.latency_factor,
        image_format=settings.libvirt.snapshot_image_format,
        compression=settings.libvirt.snapshot_compression_type
        if settings.libvirt.snapshot_compression
        else None,
        scratch_reserve_percent=settings.capture.scratch_reserve_percent,
        scratch_min_free_bytes=settings.capture.scratch_min_free * _MIB,
        upload_retries=settings.glance.num_retries,
        progress_log_interval_s=settings.agent.progress_log_interval,
    )


def _of_kinds(of_images: Work, of_disks: Work) -> dict[JobKind, Work]:
    """Return what does the jobs that make images, and those that make disks, by kind."""
    return dict.fromkeys(IMAGE_KINDS, of_images) | dict.fromkeys(DISK_KINDS, of_disks)


def _rebuild_settings(settings: cfg.ConfigOpts) -> RebuildSettings:
    group = settings.rebuild
    return RebuildSettings(
        shutdown_timeout_s=settings.shutdown_timeout,
        proof=ProofSettings(
            proof=group.proof,
            running_s=group.running_time,
            timeout_s=group.proof_timeout,
            port=group.proof_port,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
