# SPDX-License-Identifier: Apache-2.0
"""`/v1/jobs/{id}/events`: every state is told, nobody is starved, places are given back."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from oslo_config import cfg

from api_service.cmd import HttpServer
from api_service.errors import TooManyRequests
from api_service.quotas import Streams
from api_service.resources import job_events
from common.conf import api as api_options
from common.reports import InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, headers

TIMEOUT_S = 10.0
DEMO = {"X-Auth-Token": "demo:p-demo"}


@pytest.fixture
def url(cloud: Cloud) -> Iterator[str]:
    """A real server before the real application, with six threads."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    conf = cfg.ConfigOpts()
    conf.register_opts(api_options.OPTS, group=api_options.GROUP)
    conf([], project="stillframe", default_config_files=[], default_config_dirs=[])
    conf.set_override("bind_port", port, group="api")
    conf.set_override("threads", 6, group="api")
    server = HttpServer(cloud.http.app, conf, cloud.streams)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(time.monotonic() + TIMEOUT_S)


def accepted(cloud: Cloud, instance: InstanceRecord) -> tuple[str, str]:
    """Return the ids of a job that its agent has, and of its image."""
    image_id = cloud.snapshot(instance.uuid).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    cloud.report("job_accepted", agent_says.accepted(job_id, instance.uuid, image_id))
    return job_id, image_id


class Watched:
    """An open stream of events."""

    def __init__(self, url: str, job_id: str, **more: str) -> None:
        self.reply = requests.get(
            f"{url}/v1/jobs/{job_id}/events",
            headers=DEMO | more,
            stream=True,
            timeout=TIMEOUT_S,
        )
        self._lines = self.reply.iter_lines(chunk_size=1)

    def next(self) -> dict[str, Any]:
        """Return the next event that has data; raises StopIteration at the end."""
        fields: dict[str, Any] = {}
        while "data" not in fields:
            name, _, value = next(self._lines).decode().partition(": ")
            fields[name] = value
        return fields | {"job": json.loads(fields["data"])["job"]}

    def rest(self) -> list[bytes]:
        """Return what comes until the server ends it."""
        return list(self._lines)


def free(streams: Streams) -> bool:
    """Wait until every place is given back."""
    deadline = time.monotonic() + TIMEOUT_S
    while streams._open.total():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_each_change_is_told_until_the_end(
    cloud: Cloud, instance: InstanceRecord, url: str
) -> None:
    job_id, image_id = accepted(cloud, instance)
    watched = Watched(url, job_id)
    assert watched.reply.headers["Content-Type"].startswith("text/event-stream")
    first = watched.next()
    assert (first["event"], first["job"]["state"]) == ("job", "accepted")
    cloud.report("job_progress", agent_says.progress(job_id))
    second = watched.next()
    job = second["job"]
    assert (job["state"], job["progress"], job["rate_bytes_s"], job["eta_s"]) == (
        "running",
        50,
        100.0,
        5.0,
    )
    assert second["id"] != first["id"]
    cloud.report("job_finished", agent_says.finished(job_id, instance.uuid, image_id))
    last = watched.next()
    assert (last["event"], last["job"]["state"]) == ("end", "done")
    assert (last["job"]["pause_ms"], last["job"]["consistency"]) == (31.5, "crash")
    assert b"".join(watched.rest()) == b"", "the server ends it"
    assert free(cloud.streams)


def test_who_comes_again_is_told_only_what_is_new(
    cloud: Cloud, instance: InstanceRecord, url: str
) -> None:
    job_id, image_id = accepted(cloud, instance)
    with contextlib.closing(Watched(url, job_id).reply) as reply:
        lines = reply.iter_lines(chunk_size=1)
        seen = next(line for line in lines if line.startswith(b"id")).decode().partition(": ")[2]
    watched = Watched(url, job_id, **{"Last-Event-ID": seen})
    cloud.report("job_finished", agent_says.finished(job_id, instance.uuid, image_id))
    last = watched.next()
    assert last["event"] == "end"
    again = Watched(url, job_id, **{"Last-Event-ID": last["id"]}).reply
    assert (again.status_code, again.content) == (204, b""), "a browser stops asking"


def test_a_client_that_has_gone_frees_its_place(
    cloud: Cloud, instance: InstanceRecord, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_events, "_HEARTBEAT_S", 0.05)
    job_id, _ = accepted(cloud, instance)
    watched = Watched(url, job_id)
    watched.next()
    assert next(watched._lines) == b""
    assert next(watched._lines).startswith(b":"), "a heartbeat"
    watched.reply.close()
    assert free(cloud.streams)


def test_who_waits_starves_nobody(cloud: Cloud, instance: InstanceRecord, url: str) -> None:
    """Four in all, half of the threads or fewer: then 503, and everything else is served."""
    job_id, _ = accepted(cloud, instance)
    admins = {"X-Auth-Token": "admin:ops"}
    with contextlib.ExitStack() as closing:
        for who in (DEMO, DEMO, admins, admins):
            watched = Watched(url, job_id, **who)
            closing.callback(watched.reply.close)
            assert watched.reply.status_code == 200
            watched.next()
        reply = Watched(url, job_id).reply
        assert (reply.status_code, "Retry-After" in reply.headers) == (503, True)
        assert requests.get(f"{url}/v1/jobs", headers=DEMO, timeout=TIMEOUT_S).status_code == 200
        cloud.streams.stop()
    assert free(cloud.streams)


def test_one_project_does_not_take_every_place() -> None:
    streams = Streams(most=4)
    gives = [streams.take("p-demo") for _ in range(2)]
    with pytest.raises(TooManyRequests):
        streams.take("p-demo")
    streams.take("p-other")
    gives[0]()
    gives[0]()  # twice is once
    streams.take("p-demo")
    with pytest.raises(TooManyRequests):
        streams.take("p-demo")


def test_a_stream_ends_when_its_time_is_over(
    cloud: Cloud, instance: InstanceRecord, url: str
) -> None:
    job_id, _ = accepted(cloud, instance)
    cloud.streams.longest_s = 0.2
    watched = Watched(url, job_id)
    watched.next()
    assert b"".join(watched.rest()) == b""
    assert free(cloud.streams)


def test_a_daemon_that_stops_waits_for_no_stream(
    cloud: Cloud, instance: InstanceRecord, url: str
) -> None:
    job_id, _ = accepted(cloud, instance)
    watched = Watched(url, job_id)
    watched.next()
    cloud.streams.stop()
    assert b"".join(watched.rest()) == b""
    assert Watched(url, job_id).reply.status_code == 503


def wait_for_change(cloud: Cloud, job_id: str, wait: float, seen: str | None = None) -> Any:
    more = {"Last-Event-ID": seen} if seen else {}
    return cloud.http.simulate_get(
        f"/v1/jobs/{job_id}/events?wait={wait}", headers=headers("demo:p-demo", "2.1") | more
    )


def test_a_long_poll_answers_at_the_next_change(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id, image_id = accepted(cloud, instance)
    now = wait_for_change(cloud, job_id, 60).json
    assert now["job"]["state"] == "accepted", "nothing was seen yet: at once"
    same = wait_for_change(cloud, job_id, 0, now["event_id"]).json
    assert same == now, "the time is over"
    looked = threading.Event()
    find = cloud.ledger.find

    def seen_to_look(asked: str) -> Any:
        looked.set()
        return find(asked)

    cloud.ledger.find = seen_to_look  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_change, cloud, job_id, 60, now["event_id"])
        assert looked.wait(TIMEOUT_S)
        cloud.report("job_finished", agent_says.finished(job_id, instance.uuid, image_id))
        assert waiting.result(TIMEOUT_S).json["job"]["state"] == "done"
    assert free(cloud.streams)


@pytest.mark.parametrize(
    ("query", "named"), [("wait=x", "wait"), ("wait=-1", "wait"), ("x=1", "x")]
)
def test_what_cannot_be_waited_for_is_400(
    cloud: Cloud, instance: InstanceRecord, query: str, named: str
) -> None:
    job_id, _ = accepted(cloud, instance)
    reply = cloud.get(f"/v1/jobs/{job_id}/events?{query}")
    assert reply.status_code == 400
    assert named in reply.json["badRequest"]["message"]


def test_anothers_job_has_no_events(cloud: Cloud, instance: InstanceRecord) -> None:
    job_id, _ = accepted(cloud, instance)
    assert cloud.get(f"/v1/jobs/{job_id}/events?wait=0", "eve:p-other").status_code == 404
