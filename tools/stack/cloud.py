# SPDX-License-Identifier: Apache-2.0
"""The whole: broker, image service, hypervisor and Stillframe's two daemons, composed."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tools.stack.glance import Glance
from tools.stack.guest import Guest, GuestWish
from tools.stack.identity import Endpoints, Identity, NoIdentity
from tools.stack.keystone import Keystone
from tools.stack.libvirtd import Libvirtd
from tools.stack.process import Process, kept_port, side_by_side
from tools.stack.rabbitmq import RabbitMq

_READY_TIMEOUT_S = 60.0
_RELOADED = "stillframe-compute obeys them"
_READY = "stillframe-compute is ready"
#: What operators are told to run with is what the demo and the tests run with.
_PRODUCTION_BROKER_BLOCK = Path(__file__).parents[2] / "etc" / "stillframe" / "rabbitmq.conf"

_CONFIG = """\
{broker_block}
[DEFAULT]
transport_url = {transport_url}
host = {host}
state_path = {here}/state
report_interval = 2
service_down_time = 15
graceful_shutdown_timeout = 20
[api]
bind_port = {port}
dispatch_interval = 2
[agent]
progress_log_interval = 2
[libvirt]
connection_uri = {libvirt_uri}
{identity}\
[spawn]
instances_directory = {here}/instances
virt_type = {accelerator}
flavors = m1.tiny:1/256/1
verify_marker = guest: ready
verify_memory = 256
[capture]
scratch_directory = {here}/scratch
socket_directory = {run}/nbd
{extra}
"""


class Cloud:
    """One private cloud in `directory`; `bin_directory` holds stillframe-api and -compute.

    `extra_config` is appended to stillframe.conf, whose last group is [capture].
    State in `directory` survives `stop` and `start`; `cache` is for what takes
    long to make. With `token_life_s`, API and Glance ask a Keystone who their
    callers are, whose tokens are good for that long; without it they believe everybody.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cache: Path,
        bin_directory: Path,
        image: Path,
        accelerator: str,
        extra_config: str = "",
        token_life_s: int | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._bin = bin_directory
        self._image = image
        self._accelerator = accelerator
        self._extra_config = extra_config
        self._options: list[str] = []
        self._has_schema = False
        self.rabbitmq = RabbitMq(directory / "rabbitmq")
        #: Where the daemons find the broker; a test may put something in between.
        self.transport_url: str = self.rabbitmq.transport_url
        self.glance = Glance(directory / "glance", cache / "venv-glance")
        #: Where the daemons find the image service; a test may put something in between.
        self.glance_endpoint = self.glance.endpoint
        self.libvirtd = Libvirtd(directory / "libvirt", cache)
        self.api = Process("stillframe-api", directory)
        self.agent = Process("stillframe-compute", directory)
        self.log_directory = directory / "log"
        self.host = "demo-host"
        self._api_port = kept_port(directory / "api-port", self.api)
        self.identity = self.glance.identity = self._make_identity(cache, token_life_s)

    @property
    def api_url(self) -> str:
        """URL of stillframe-api."""
        return f"http://127.0.0.1:{self._api_port}"

    @property
    def config_file(self) -> Path:
        """The configuration of both daemons."""
        return self.directory / "stillframe.conf"

    @property
    def clouds_file(self) -> Path:
        """The configuration of stock clients."""
        return self.directory / "clouds.yaml"

    def start_parts(self) -> None:
        """Start broker, image service and hypervisor, side by side."""
        parts = (self.rabbitmq, self.identity, self.glance, self.libvirtd)
        side_by_side(*[part.start for part in parts])

    def start_daemons(self) -> None:
        """Write the configuration, bring the database up to date, start what does not run."""
        self.configure()
        self.start_api()
        self.start_agent()

    def start_api(self) -> None:
        """Start stillframe-api and wait until it answers."""
        if self.api.pid is None:
            self._make_schema()
            self.api.start(self._command("stillframe-api"))
        self.api.wait_until(lambda: self.get("/") is not None, _READY_TIMEOUT_S)

    def _make_schema(self) -> None:
        """Bring the database up to date, once: only another release would need it again."""
        if not self._has_schema:
            self.manage("db", "sync")
            self._has_schema = True

    def start_agent(self) -> None:
        """Start stillframe-compute and wait until the API knows it to be up."""
        ready = self._said(_READY)
        if self.agent.pid is None:
            self.agent.start(self._command("stillframe-compute"))
            # For a while the API still holds the one before it to be up.
            self.agent.wait_until(lambda: self._said(_READY) > ready, _READY_TIMEOUT_S)
        self.agent.wait_until(self._agent_is_up, _READY_TIMEOUT_S)

    def reconfigure_agent(self, *lines: str) -> None:
        """Have the agent obey other mutable options, as lines after `extra_config`.

        One that does not run finds them when it starts.
        """
        self._options = list(lines)
        self.configure()
        if self.agent.pid is None:
            return
        before = self._said(_RELOADED)
        self.agent.signal(signal.SIGHUP)
        _wait(lambda: self._said(_RELOADED) > before, "the agent's new options")

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run stillframe-manage on this cloud; raise CalledProcessError unless it exits with 0."""
        command = [*self._command("stillframe-manage", logs=False), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)

    def stop(self) -> None:
        """Stop everything that was started, and only that; one that fails spares no other.

        The agent first, which may have something to tell, then the API; the parts side by side.
        """
        parts = (self.libvirtd, self.glance, self.identity, self.rabbitmq)
        with contextlib.ExitStack() as stopping:
            stopping.callback(forget_queue_names, self.directory / "state")
            stopping.callback(side_by_side, *[part.stop for part in parts])
            stopping.callback(self.api.stop)
            stopping.callback(self.agent.stop)

    def guest(self, wish: GuestWish) -> Guest:
        """Return a guest; it is neither defined nor started yet."""
        return Guest(self.libvirtd, self._image, self.directory / "guests", wish, self._accelerator)

    def wait_for_instance(self, guest: Guest, status: str = "ACTIVE") -> None:
        """Wait until the API shows the guest, in that status."""
        _wait(lambda: self.server(guest).get("status") == status, f"instance {guest.name}")

    def server(self, guest: Guest) -> dict[str, Any]:
        """Return the guest as the API shows it; empty if it does not."""
        found = self.get(f"/v2.1/servers/{guest.uuid}")
        return found["server"] if found else {}

    def get(self, path: str, user: str = "admin") -> Any:
        """Return what the API answers a user; None if it does not answer 200."""
        headers = {"OpenStack-API-Version": "compute latest"}
        try:
            headers["X-Auth-Token"] = self.identity.token(user)
            request = urllib.request.Request(self.api_url + path, headers=headers)  # noqa: S310
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                return json.load(response)
        except (urllib.error.URLError, OSError):
            return None

    def configure(self) -> None:
        """Write stillframe.conf and clouds.yaml."""
        self.log_directory.mkdir(exist_ok=True)
        self.config_file.write_text(
            _CONFIG.format(
                broker_block=_PRODUCTION_BROKER_BLOCK.read_text(),
                transport_url=self.transport_url,
                host=self.host,
                here=self.directory,
                run=self.libvirtd.run,
                port=self._api_port,
                libvirt_uri=self.libvirtd.uri,
                accelerator=self._accelerator,
                identity=self.identity.daemon_options(self.glance_endpoint),
                extra="\n".join([self._extra_config, *self._options]),
            )
        )
        self.clouds_file.write_text(self.identity.clouds(self._endpoints()))

    def _endpoints(self) -> Endpoints:
        return Endpoints(compute=self.api_url, image=self.glance.endpoint)

    def _make_identity(self, cache: Path, token_life_s: int | None) -> Identity:
        if token_life_s is None:
            return NoIdentity()
        directory, venv = self.directory / "keystone", cache / "venv-keystone"
        return Keystone(directory, venv, self._endpoints(), token_life_s=token_life_s)

    def _said(self, words: str) -> int:
        """Return how often the agent's log says so."""
        log = self.log_directory / "n-cpu.log"
        return log.read_text().count(words) if log.exists() else 0

    def _agent_is_up(self) -> bool:
        found = self.get("/v2.1/os-services") or {"services": []}
        return any(one["state"] == "up" for one in found["services"])

    def _command(self, program: str, *, logs: bool = True) -> list[str]:
        command = [str(self._bin / program), "--config-file", str(self.config_file)]
        return [*command, "--log-dir", str(self.log_directory)] if logs else command


def forget_queue_names(state_path: Path) -> None:
    """Remove what oslo.messaging's queue manager keeps for the agent of this state directory."""
    record = state_path / "agent_id"
    if record.exists():
        for path in Path("/dev/shm").glob(f"*-{record.read_text().strip()}_qmanager"):  # noqa: S108
            path.unlink(missing_ok=True)


def _wait(holds: Any, what: str, timeout_s: float = _READY_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come in {timeout_s} s")
        time.sleep(0.1)
