#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Have a snapshot taken by stillframe-api, over RabbitMQ: for services that know no host.

    cast_snapshot.py --config-file SERVICE.conf --instance UUID --project ID --user ID [--name NAME]

Needs oslo.messaging alone. The configuration names the broker as for any OpenStack
service, and must say that queues are durable where Stillframe's does, since the
exchange, which both use, is durable or not ([oslo_messaging_rabbit] rabbit_quorum_queue).
Prints the answer as JSON, a line each time the job's state changes; exits with 0
when the image is there. docs/rpc.md describes arguments and answer.
"""

import argparse
import json
import sys
import time
import uuid

import oslo_messaging
from oslo_config import cfg

ANSWERS_WITHIN_S = 60
LOOKS_EVERY_S = 0.5
ENDED = ("done", "error", "cancelled")


def main() -> int:
    """Ask, and look how it goes until the job has ended."""
    options = arguments()
    # The global object: oslo.messaging reads some options from nowhere else.
    cfg.CONF(["--config-file", options.config_file], project="example")
    transport = oslo_messaging.get_rpc_transport(cfg.CONF)
    target = oslo_messaging.Target(topic="stillframe-api", version="1.3")
    api = oslo_messaging.get_rpc_client(transport, target, timeout=ANSWERS_WITHIN_S, retry=2)
    # For whom. The policy asks of them what it asks over REST.
    context = {
        "request_id": f"req-{uuid.uuid4()}",
        "user_id": options.user,
        "project_id": options.project,
        "roles": options.roles.split(","),
    }
    # Chosen here, so that a call whose answer was lost can be made again: it is the same job.
    job_id = str(uuid.uuid4())
    try:
        answer = call_again(
            api,
            context,
            "snapshot_instance",
            job_id=job_id,
            instance={"uuid": options.instance},
            name=options.name,
            metadata={"made_by": "cast_snapshot.py"},
            options={"freeze": "auto"},
        )
        return follow(api, context, answer)
    finally:
        transport.cleanup()


def follow(api: oslo_messaging.RPCClient, context: dict, answer: dict) -> int:
    """Print how the job goes; return the exit code."""
    print(json.dumps(answer), flush=True)
    while answer["error"] is None and answer["state"] not in ENDED:
        time.sleep(LOOKS_EVERY_S)
        before, job_id = answer["state"], answer["job_id"]
        answer = call_again(api, context, "show_job", job_id=job_id)
        if answer["state"] != before:
            print(json.dumps(answer), flush=True)
    return 0 if answer["state"] == "done" else 1


def call_again(
    api: oslo_messaging.RPCClient, context: dict, method: str, tries: int = 3, **values: object
) -> dict:
    """Call, and call again where there is no answer; the last failure is raised."""
    for left in reversed(range(tries)):
        try:
            return api.call(context, method, **values)
        except (oslo_messaging.MessagingTimeout, oslo_messaging.MessageDeliveryFailure):
            if not left:
                raise


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--instance", required=True, help="UUID")
    parser.add_argument("--project", required=True, help="id of the instance's project")
    parser.add_argument("--user", required=True, help="id of the user that this is done for")
    parser.add_argument("--roles", default="member,reader", help="that the user has there")
    parser.add_argument("--name", default="from-a-service", help="of the image")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
