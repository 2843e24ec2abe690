# SPDX-License-Identifier: Apache-2.0
"""A private rabbitmq-server: own node, ports, cookie and port mapper, on the loopback only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tools.stack.process import Process, free_port, listens

_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
_START_TIMEOUT_S = 90.0


class RabbitMq:
    """One node; its state in `directory` survives a restart."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.process = Process("rabbitmq", directory)
        self.port, self._distribution_port, self._mapper_port = self._ports()

    @property
    def transport_url(self) -> str:
        """What oslo.messaging connects to."""
        return f"rabbit://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start the node, if it does not run, and wait until it listens."""
        if self.process.pid is None:
            self._directory.joinpath("rabbitmq.conf").write_text(
                f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
                "distribution.listener.interface = 127.0.0.1\n"
                "disk_free_limit.absolute = 50MB\n"
            )
            self.process.start([_SERVER], environment=self._environment())
        self.process.wait_until(lambda: listens(self.port), _START_TIMEOUT_S)

    def stop(self) -> None:
        """Stop the node and its port mapper."""
        self.process.stop()
        subprocess.run(
            ["epmd", "-port", str(self._mapper_port), "-kill"],
            env={**os.environ, **self._environment()},
            capture_output=True,
            timeout=30,
            check=False,
        )

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl on the node and return what it prints."""
        return subprocess.run(
            ["/usr/lib/rabbitmq/bin/rabbitmqctl", "-q", *arguments],
            env={**os.environ, **self._environment()},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    def _ports(self) -> tuple[int, int, int]:
        record = self._directory / "ports"
        if not record.exists():
            record.write_text(" ".join(str(free_port()) for _ in range(3)))
        amqp, distribution, mapper = map(int, record.read_text().split())
        return amqp, distribution, mapper

    def _environment(self) -> dict[str, str]:
        here = str(self._directory)
        return {
            "HOME": here,
            "RABBITMQ_NODENAME": f"stillframe-{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": f"{here}/rabbitmq",
            # The host's own RabbitMQ may be configured in /etc/rabbitmq; none of it is for us.
            "RABBITMQ_CONFIG_FILES": f"{here}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{here}/advanced",
            "RABBITMQ_CONF_ENV_FILE": f"{here}/rabbitmq-env.conf",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": f"{here}/data",
            "RABBITMQ_LOG_BASE": f"{here}/log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{here}/plugins",
            "RABBITMQ_PID_FILE": f"{here}/node.pid",
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
