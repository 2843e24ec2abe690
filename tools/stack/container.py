# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ in a container, by testcontainers: the official image, or one of our own making."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Self

#: The first that the engine has is used; none is pulled.
IMAGES = ("rabbitmq:4", "rabbitmq:3", "stillframe-test/rabbitmq:latest")
_START_TIMEOUT_S = 90.0
_PORT = 5672

# The reaper container's image comes from a registry, which may be out of reach;
# `ContainerBroker` stops what it started itself.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")


def usable_image() -> str | None:
    """Return a RabbitMQ image that the engine has, or None if there is no engine or no image."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=10)
        present = {tag for image in client.images.list() for tag in image.tags}
        client.close()
    except DockerException:
        return None
    return next((image for image in IMAGES if image in present), None)


class ContainerBroker:
    """A context manager: one RabbitMQ container, its port on the loopback."""

    def __init__(self, image: str) -> None:
        from testcontainers.core.container import DockerContainer

        self._container = DockerContainer(image).with_exposed_ports(_PORT)

    @property
    def transport_url(self) -> str:
        """What oslo.messaging connects to."""
        return f"rabbit://guest:guest@127.0.0.1:{self._container.get_exposed_port(_PORT)}/"

    def __enter__(self) -> Self:
        self._container.start()
        self._wait_until_ready()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._container.stop()

    def _wait_until_ready(self) -> None:
        from common.broker import check
        from common.errors import BrokerUnavailable

        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                check(self.transport_url, [], timeout_s=2)
            except BrokerUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
            else:
                return
