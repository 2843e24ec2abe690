#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cast a snapshot straight to the agent of a host: for services that have the image's record.

    cast_to_agent.py --config-file SERVICE.conf --host HOST --instance UUID --image UUID

The image must exist in Glance with status `queued`; the agent fills it, or deletes
it if the job fails. Prints the job's id and exits once the message is with the broker: the
job appears in `GET /v1/jobs/ID` with the agent's first report. Exits with 1 where
the host never had an agent. The queue of one that is down stays and takes the cast; an
agent that is back after the deadline refuses it. docs/rpc.md describes the arguments.
"""

import argparse
import sys
import time
import uuid

import oslo_messaging
from oslo_config import cfg

ACCEPTED_WITHIN_S = 300


def main() -> int:
    """Cast, and say which job it is."""
    options = arguments()
    cfg.CONF(["--config-file", options.config_file], project="example")
    transport = oslo_messaging.get_rpc_transport(cfg.CONF)
    agent = oslo_messaging.get_rpc_client(
        transport,
        oslo_messaging.Target(topic="stillframe-compute", server=options.host, version="1.0"),
        # Without it a cast to a host that has no queue, since no agent was ever there, is lost,
        # and nobody is told.
        transport_options=oslo_messaging.TransportOptions(at_least_once=True),
        retry=2,
    )
    job_id = str(uuid.uuid4())
    context = {"request_id": f"req-{uuid.uuid4()}", "user_id": options.user}
    try:
        agent.cast(
            context,
            "snapshot_instance",
            instance={"uuid": options.instance},
            image_id=options.image,
            job_id=job_id,
            # The agent compares it with its own clock, when it takes the job.
            deadline=time.time() + ACCEPTED_WITHIN_S,
        )
    except oslo_messaging.exceptions.MessageUndeliverable:
        print(f"No agent listens for host {options.host}", file=sys.stderr)
        return 1
    finally:
        transport.cleanup()
    print(job_id)
    return 0


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--host", required=True, help="as `compute service list` names it")
    parser.add_argument("--instance", required=True, help="UUID")
    parser.add_argument("--image", required=True, help="UUID of the queued image")
    parser.add_argument("--user", default="service", help="id, for the logs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
