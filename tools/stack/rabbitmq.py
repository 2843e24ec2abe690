# SPDX-License-Identifier: Apache-2.0
"""Private rabbitmq-servers: own nodes, ports, cookie and port mapper, on the loopback only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tools.stack.process import Process, free_port, listens, side_by_side

_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
_START_TIMEOUT_S = 90.0
_LOOK_S = 0.5


class RabbitMq:
    """One node; its state in `directory` survives a restart."""

    def __init__(self, directory: Path, *, mapper_port: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.process = Process("rabbitmq", directory)
        self.port, self._distribution_port, mine = self._ports()
        self.mapper_port = mapper_port or mine
        #: The nodes of its cluster, itself among them; none: it is alone.
        self.peers: Sequence[str] = ()

    @property
    def node(self) -> str:
        """Its name among nodes."""
        return f"stillframe-{self.port}@localhost"

    @property
    def transport_url(self) -> str:
        """What oslo.messaging connects to."""
        return f"rabbit://guest:guest@127.0.0.1:{self.port}/"

    def share(self, cookie: str, peers: Sequence[str]) -> None:
        """Make it one of a cluster, before its first start: a common secret, and who belongs."""
        self.peers = peers
        path = self._directory / ".erlang.cookie"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(cookie)

    def start(self) -> None:
        """Start the node, if it does not run, and wait until it listens."""
        if self.process.pid is None:
            self._directory.joinpath("rabbitmq.conf").write_text(
                f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
                "distribution.listener.interface = 127.0.0.1\n"
                "disk_free_limit.absolute = 50MB\n" + self._cluster_formation()
            )
            self.process.start([_SERVER], environment=self._environment())
        self.process.wait_until(lambda: listens(self.port), _START_TIMEOUT_S)

    def stop(self) -> None:
        """Stop the node and its port mapper."""
        self.process.stop()
        subprocess.run(
            ["epmd", "-port", str(self.mapper_port), "-kill"],
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

    def _cluster_formation(self) -> str:
        if not self.peers:
            return ""
        backend = "cluster_formation.peer_discovery_backend = classic_config\n"
        nodes = "cluster_formation.classic_config.nodes"
        return backend + "".join(
            f"{nodes}.{number} = {peer}\n" for number, peer in enumerate(self.peers, 1)
        )

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
            "RABBITMQ_NODENAME": self.node,
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
            "ERL_EPMD_PORT": str(self.mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }


class RabbitMqCluster:
    """Several nodes that are one broker; each may be killed and started again."""

    def __init__(self, directory: Path, size: int = 3) -> None:
        first = RabbitMq(directory / "1")
        others = (
            RabbitMq(directory / str(n), mapper_port=first.mapper_port) for n in range(2, size + 1)
        )
        self.nodes = (first, *others)
        cookie, names = secrets.token_hex(16), [node.node for node in self.nodes]
        for node in self.nodes:
            node.share(cookie, names)

    @property
    def transport_url(self) -> str:
        """What oslo.messaging connects to: any of them."""
        hosts = ",".join(f"guest:guest@127.0.0.1:{node.port}" for node in self.nodes)
        return f"rabbit://{hosts}/"

    def start(self) -> None:
        """Start the nodes that do not run, and wait until they are one cluster."""
        side_by_side(*[node.start for node in self.nodes])
        deadline = time.monotonic() + _START_TIMEOUT_S
        while len(self.running()) < len(self.nodes):
            if time.monotonic() > deadline:
                raise TimeoutError(f"of {len(self.nodes)} nodes only {self.running()} are together")
            time.sleep(_LOOK_S)

    def stop(self) -> None:
        """Stop every node."""
        side_by_side(*[node.stop for node in self.nodes])

    def running(self) -> list[str]:
        """Return the names of the nodes that a node that runs takes for running."""
        for node in self.nodes:
            if node.process.pid is not None:
                with contextlib.suppress(subprocess.SubprocessError):
                    status = json.loads(node.control("cluster_status", "--formatter", "json"))
                    return list(status["running_nodes"])
        return []

    def alive(self) -> RabbitMq:
        """Return a node that runs."""
        return next(node for node in self.nodes if node.process.pid is not None)

    def leader_of(self, queue: str) -> RabbitMq:
        """Return the node that leads a quorum queue."""
        rows = self.alive().control("list_queues", "name", "leader", "--formatter", "json")
        leaders = {row["name"]: row["leader"] for row in json.loads(rows)}
        return next(node for node in self.nodes if node.node == leaders[queue])
