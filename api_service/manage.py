# SPDX-License-Identifier: Apache-2.0
"""`stillframe-manage`: what the operator does by hand.

stillframe-manage db sync|version     the database's schema
stillframe-manage broker check        RabbitMQ, and who listens on which queue
stillframe-manage job list|show ID    the ledger
stillframe-manage image flatten ID    one whole image of an increment and what it lies on
stillframe-manage image verify ID     whether an image boots, tried out on some host
stillframe-manage openapi             the API, as an OpenAPI document
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oslo_config import cfg
from oslo_db import exception as db_errors

from api_service import openapi, views
from api_service.agents import Agents
from api_service.app import ROUTES, make_database
from api_service.health import check_broker
from api_service.server_parts import dispatcher_over, make_verifications
from api_service.store import engine
from api_service.store.inventory import Inventory
from api_service.store.job_lists import JobQuery
from api_service.store.ledger import Ledger
from common import conf, context, daemon, flatten, rpc
from common.errors import StillframeError
from common.glance import ImageService
from common.states import ENDED, OPEN, JobState

PROG = "stillframe-manage"

_LOOK_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit code."""
    conf.CONF.register_cli_opt(cfg.SubCommandOpt("command", handler=_add_commands))
    try:
        settings = conf.load(sys.argv[1:] if argv is None else argv, PROG)
        rpc.register_options(settings)
        run: Command = settings.command.run
        return run(settings)
    except (StillframeError, cfg.Error, db_errors.DBError) as error:
        return daemon.fail(f"{PROG}: {error}")


def db_sync(settings: cfg.ConfigOpts) -> int:
    """Bring the schema to this release's version."""
    database = make_database(settings)
    before = database.version()
    database.sync()
    _say(f"Database schema: {before or 'empty'} -> {database.version()}")
    return daemon.EXIT_OK


def db_version(settings: cfg.ConfigOpts) -> int:
    """Tell the schema's version and this release's."""
    found = make_database(settings).version()
    _say(f"Database schema: {found or 'empty'}; this release: {engine.newest_version()}")
    return daemon.EXIT_OK


def broker_check(settings: cfg.ConfigOpts) -> int:
    """Look at the broker and every known agent's queue; 1 if anything is wrong."""
    agents = Inventory(make_database(settings)).agents()
    report = check_broker(settings, [agent.host for agent in agents])
    _say(f"Broker        {report.server} {report.version}, reached in {report.connect_ms:.0f} ms")
    _say(f"Permissions   {'ok' if report.may_declare else 'this user may not declare queues'}")
    blocked = "NO: an alarm (memory or disk) of RabbitMQ stops all that is published"
    _say(f"Takes         {blocked if report.is_blocked else 'messages'}")
    _say(f"{'Queue':50} {'waiting':>8} {'consumers':>10}")
    for queue in report.queues:
        depth = "no queue" if queue.depth is None else str(queue.depth)
        _say(f"{queue.name:50} {depth:>8} {queue.consumers or 0:>10}")
    if not agents:
        _say("No compute agent has been heard of yet")
    _say("Healthy" if report.healthy else "NOT healthy: see above")
    return daemon.EXIT_OK if report.healthy else daemon.EXIT_FAILED


def host_forget(settings: cfg.ConfigOpts) -> int:
    """Forget a host that is gone for good: its agent, and the instances that were on it."""
    database, host = make_database(settings), settings.command.host_name
    agents = Agents(Inventory(database), settings.service_down_time)
    open_jobs = Ledger(database).jobs(JobQuery(host=host, states=tuple(OPEN)))
    if open_jobs:
        return daemon.fail(
            f"{len(open_jobs)} jobs of host {host} are open yet; they end by themselves, within "
            f"job_silence_timeout ({settings.api.job_silence_timeout} s)."
        )
    _say(f"Host {host} is forgotten, and {agents.forget(host)} instances that were on it")
    return daemon.EXIT_OK


def job_list(settings: cfg.ConfigOpts) -> int:
    """List the newest jobs."""
    for job in Ledger(make_database(settings)).jobs(JobQuery(limit=50)):
        created = job.created_at.strftime("%Y-%m-%d %H:%M:%S")
        _say(f"{job.id}  {created}  {job.state:9}  {job.instance_uuid}  {job.reason or ''}")
    return daemon.EXIT_OK


def job_show(settings: cfg.ConfigOpts) -> int:
    """Show one job as JSON; 1 if there is none of that id."""
    job = Ledger(make_database(settings)).find(settings.command.job_id)
    if job is None:
        return daemon.fail(f"There is no job {settings.command.job_id}.")
    _say(json.dumps(views.job(job), indent=2))
    return daemon.EXIT_OK


def image_flatten(settings: cfg.ConfigOpts) -> int:
    """Make a whole image of an increment, beside it; needs qemu-img, and room in $TMPDIR."""
    # As an exception, so that temporary files and a half image are removed on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(daemon.EXIT_FAILED))
    images = ImageService(conf.glance.settings(settings))
    whole = flatten.flatten(images, settings.command.image_id, Path(tempfile.gettempdir()))
    _say(f"Image {whole} holds the whole of {settings.command.image_id}")
    return daemon.EXIT_OK


def image_verify(settings: cfg.ConfigOpts) -> int:
    """Try out whether an image boots, and wait for the result; 1 unless it does."""
    database = make_database(settings)
    ledger, agents = Ledger(database), Agents(Inventory(database), settings.service_down_time)
    images = ImageService(conf.glance.settings(settings))
    caller = context.new(user_id=PROG, roles=["admin"])
    verifications = make_verifications(settings, agents, images)
    job = verifications.request(caller, settings.command.image_id)
    _say(f"Job {job.id} tries out image {job.image_id} on host {job.host}")
    # What cannot be cast now, the API casts.
    dispatcher_over(rpc.Transport(settings), ledger, agents).cast(job.id)
    while job.state not in ENDED:
        time.sleep(_LOOK_S)
        # Nobody removes jobs: one that was there is there.
        job = ledger.find(job.id) or job
    if job.state is not JobState.DONE:
        return daemon.fail(f"Image {job.image_id}: {job.reason}")
    _say(f"Image {job.image_id} boots")
    return daemon.EXIT_OK


def openapi_show(_settings: cfg.ConfigOpts) -> int:
    """Print the OpenAPI document of this release."""
    _say(json.dumps(openapi.document(ROUTES), indent=2))
    return daemon.EXIT_OK


Command = Callable[[cfg.ConfigOpts], int]

#: Noun → verb → (what does it, its arguments); the verb is empty where the noun says it all.
COMMANDS: dict[str, dict[str, tuple[Command, tuple[str, ...]]]] = {
    "db": {"sync": (db_sync, ()), "version": (db_version, ())},
    "broker": {"check": (broker_check, ())},
    "host": {"forget": (host_forget, ("host_name",))},
    "image": {
        "flatten": (image_flatten, ("image_id",)),
        "verify": (image_verify, ("image_id",)),
    },
    "openapi": {"": (openapi_show, ())},
    "job": {"list": (job_list, ()), "show": (job_show, ("job_id",))},
}


def _add_commands(nouns: Any) -> None:
    for noun, verbs in COMMANDS.items():
        parser: ArgumentParser = nouns.add_parser(noun)
        if "" in verbs:
            parser.set_defaults(run=verbs[""][0])
            continue
        subparsers = parser.add_subparsers(dest="verb", required=True)
        for verb, (run, arguments) in verbs.items():
            command = subparsers.add_parser(verb, help=run.__doc__)
            command.set_defaults(run=run)
            for argument in arguments:
                command.add_argument(argument)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
