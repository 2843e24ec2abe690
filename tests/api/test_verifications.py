# SPDX-License-Identifier: Apache-2.0
"""Images that are tried out: the job, where it runs, what is refused; nobody sees the instance."""

from __future__ import annotations

from typing import Any

import pytest

from api_service.errors import Conflict
from api_service.placement import Placement
from api_service.store.lifecycles import Lifecycles
from api_service.verifications import Verifications
from common import context
from common.errors import AgentUnavailable
from common.glance import ImageNotFound
from common.states import JobKind, JobState
from tests.api import agents as agent_says
from tests.api.clouds import ACCEPT_TIMEOUT_S, Cloud
from tests.api.memory_images import MemoryImages


@pytest.fixture
def verifications(cloud: Cloud) -> Verifications:
    return Verifications(
        lifecycles=Lifecycles(cloud.database),
        placement=Placement(agents=cloud.agents, inventory=cloud.inventory),
        images=cloud.images,
        accept_timeout_s=ACCEPT_TIMEOUT_S,
    )


def ask(verifications: Verifications, image_id: str) -> Any:
    return verifications.request(context.new(user_id="ops", roles=["admin"]), image_id)


def test_a_host_is_told_to_try_it_and_its_word_is_the_jobs(
    cloud: Cloud, verifications: Verifications, image: str
) -> None:
    job = ask(verifications, image)
    cloud.dispatcher.poke(job.id)
    cast = cloud.casts.next()
    assert (cast["method"], cast["host"], cast["image_id"]) == (
        "verify_image",
        agent_says.HOST,
        image,
    )
    uuid = cast["instance"]["uuid"]
    outcome = agent_says.finished(
        *(job.id, uuid, image),
        kind=JobKind.VERIFY,
        state=JobState.ERROR,
        reason="it did not boot",
        reason_code="image_does_not_boot",
        size_bytes=None,
        sha512=None,
        capture=None,
    )
    cloud.report("job_finished", outcome)
    shown = cloud.get(f"/v1/jobs/{job.id}").json["job"]
    # Its project sees what came of its image, and no instance.
    assert (shown["kind"], shown["image_id"], shown["reason"]) == (
        "verify",
        image,
        "it did not boot",
    )
    assert cloud.get(f"/v2.1/servers/{uuid}", "admin:ops").status_code == 404
    assert cloud.get("/v2.1/servers?all_tenants=1", "admin:ops").json["servers"] == []
    assert cloud.ledger.to_discard() == [], "the image is not the job's to remove"


def test_what_cannot_be_tried_is_refused(
    cloud: Cloud, verifications: Verifications, image: str, images: MemoryImages
) -> None:
    with pytest.raises(ImageNotFound):
        ask(verifications, "8f2f6c1c-6f0b-4b7e-9d53-5d1a2b3c4d5e")
    images.records[image]["status"] = "saving"
    with pytest.raises(Conflict, match="not active"):
        ask(verifications, image)
    images.records[image]["status"] = "active"
    cloud.report("host_report", agent_says.heartbeat() | {"rpc_version": "1.3"})
    with pytest.raises(AgentUnavailable, match="room to try"):
        ask(verifications, image)
    assert cloud.ledger.jobs() == []
