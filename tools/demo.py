# SPDX-License-Identifier: Apache-2.0
"""`make demo`: from nothing to a snapshot on real parts, all below `.demo/`.

    python3 -m tools.demo up [--keystone]    build and start what is missing, take a snapshot,
                                             tell its story; with a Keystone if it is asked for
    python3 -m tools.demo down               stop everything that was started, and only that

Runs on the system's Python with nothing installed: it makes the venvs itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.stack import glance
from tools.stack import keystone as keystone_tools
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest, GuestWish, build_image, choose_accelerator

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".demo"
CACHE = HOME / "cache"
VENV = HOME / "venv"
CLIENT_VENV = HOME / "venv-client"
#: Lies there while the demo that runs, or ran last, has a Keystone.
WITH_KEYSTONE = HOME / "with-keystone"

_SIZE_MIB = 1024
_PAYLOAD_MIB = 256
_CLIENTS = ("python-openstackclient>=7",)
_LOOK_S = 0.5
_TOKEN_LIFE_S = 3600
_SNAPSHOT_TIMEOUT_S = 600.0

_ENV = """\
# source this: puts the stock `openstack` client on PATH and points it at the demo
export PATH="{client}/bin:{venv}/bin:$PATH"
export OS_CLIENT_CONFIG_FILE="{clouds}"
export OS_CLOUD=stillframe-demo
"""


def main(argv: list[str]) -> int:
    """Run one of the commands; return the process's exit code."""
    commands: dict[tuple[str, ...], Callable[[], None]] = {
        ("up",): lambda: up(keystone=False),
        ("up", "--keystone"): lambda: up(keystone=True),
        ("down",): down,
    }
    command = commands.get(tuple(argv))
    if command is None:
        sys.stderr.write(__doc__ or "")
        return 2
    if os.geteuid() != 0:
        sys.stderr.write("The demo's hypervisor needs root: sudo make demo, sudo make demo-down\n")
        return 1
    command()
    return 0


def up(*, keystone: bool) -> None:
    """Bring the whole cloud up and take a snapshot."""
    began = time.monotonic()
    _stop_the_other_kind(keystone=keystone)
    cloud, guest = _bring_up(keystone=keystone)
    say(f"Everything runs after {time.monotonic() - began:.0f} s. A snapshot, by the stock client:")
    name = f"demo-{time.strftime('%H%M%S')}"
    command = ["openstack", "--os-cloud", "stillframe-demo", "server", "image", "create"]
    command += ["--wait", "--name", name, guest.name]
    say("  $ " + " ".join(command))
    image = _take_snapshot(cloud, guest, command)
    _tell(cloud, guest, image)


def down() -> None:
    """Stop the demo; what took long to build stays in `.demo/cache`."""
    if (HOME / "api-port").exists():  # the first thing that a start leaves, failed or not
        _cloud("qemu", keystone=WITH_KEYSTONE.exists()).stop()
    say("The demo is stopped. Its logs stay in .demo/log, what it built in .demo/cache.")


def _stop_the_other_kind(*, keystone: bool) -> None:
    """Stop API, agent and Glance of a demo that asks, or asks not, who its callers are."""
    had = WITH_KEYSTONE.exists()
    if had != keystone and (HOME / "api-port").exists():
        running = _cloud("qemu", keystone=had)
        for part in (running.agent, running.api, running.glance, running.identity):
            part.stop()
    HOME.mkdir(exist_ok=True)
    if keystone:
        WITH_KEYSTONE.touch()
    else:
        WITH_KEYSTONE.unlink(missing_ok=True)


def _bring_up(*, keystone: bool) -> tuple[Cloud, Guest]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        venv = pool.submit(_make_venv, VENV, ["-e", f"{ROOT}[api,agent]"], "the two daemons")
        client = pool.submit(_make_venv, CLIENT_VENV, list(_CLIENTS), "the stock client")
        image_service = pool.submit(_told, "Glance's venv", glance.make_venv, CACHE / "venv-glance")
        identity_service = []
        if keystone:
            where = CACHE / "venv-keystone"
            made = pool.submit(_told, "Keystone's venv", keystone_tools.make_venv, where)
            identity_service.append(made)
        image = pool.submit(_told, "the guest image", _image)
        accelerator = pool.submit(lambda: choose_accelerator(image.result(), CACHE / "accelerator"))
        _await_all(venv, client, image_service, *identity_service, image, accelerator)
    cloud = _cloud(accelerator.result(), keystone=keystone)
    parts = "RabbitMQ, Keystone, Glance and libvirt" if keystone else "RabbitMQ, Glance and libvirt"
    say(f"Starting {parts}, private ones")
    cloud.start_parts()
    cloud.configure()
    _write_env(cloud)
    guest = cloud.guest(GuestWish(name="demo-vm"))
    with ThreadPoolExecutor() as pool:
        say("Starting stillframe-api and stillframe-compute; booting the guest")
        _await_all(pool.submit(cloud.start_daemons), pool.submit(_boot, cloud, guest))
    cloud.wait_for_instance(guest)
    return cloud, guest


def _cloud(accelerator: str, *, keystone: bool) -> Cloud:
    return Cloud(
        HOME,
        cache=CACHE,
        bin_directory=VENV / "bin",
        image=CACHE / "guest",
        accelerator=accelerator,
        token_life_s=_TOKEN_LIFE_S if keystone else None,
    )


def _boot(cloud: Cloud, guest: Guest) -> None:
    names = cloud.libvirtd.virsh("list", "--all", "--name").split()
    if guest.name not in names:
        guest.define()
    if guest.state() != "running":
        guest.start()


def _image() -> Path:
    return build_image(CACHE / "guest", _SIZE_MIB, _PAYLOAD_MIB)


def _make_venv(venv: Path, requirements: list[str], what: str) -> None:
    """Install into a venv, unless the same was installed into it before."""
    sources = [ROOT / "setup.cfg", ROOT / "pyproject.toml"]
    stamp, wanted = venv / "stamp", "\n".join(requirements + [f.read_text() for f in sources])
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say(f"Installing {what} into {venv.relative_to(ROOT)}")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    pip = [str(venv / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements], check=True, timeout=900, cwd=ROOT)
    stamp.write_text(wanted)


def _write_env(cloud: Cloud) -> None:
    text = _ENV.format(client=CLIENT_VENV, venv=VENV, clouds=cloud.clouds_file)
    (HOME / "env.sh").write_text(text)


def _take_snapshot(cloud: Cloud, guest: Guest, command: list[str]) -> dict[str, Any]:
    """Run the client, show the server's progress meanwhile, and return the image."""
    client = subprocess.Popen(
        [str(CLIENT_VENV / "bin" / command[0]), *command[1:], "-f", "json"],
        env={"OS_CLIENT_CONFIG_FILE": str(cloud.clouds_file), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    shown, deadline = "", time.monotonic() + _SNAPSHOT_TIMEOUT_S
    while client.poll() is None:
        if time.monotonic() > deadline:
            client.kill()
        server = cloud.server(guest)
        state = f"{server.get('OS-EXT-STS:task_state')}, {server.get('progress', 0)} %"
        if server.get("OS-EXT-STS:task_state") and state != shown:
            shown = state
            say(f"    {state}")
        time.sleep(_LOOK_S)
    output, errors = client.communicate()
    if client.returncode:
        raise SystemExit(f"The snapshot failed: {errors}")
    image: dict[str, Any] = json.loads(output)
    return image


def _tell(cloud: Cloud, guest: Guest, image: dict[str, Any]) -> None:
    say("\nThe story, from both logs:")
    for line in _story(cloud, image["id"]):
        say(f"  {line}")
    properties = image["properties"]
    say(
        f"\nImage {image['id']}: {image['status']}, {image['size']} bytes of {image['disk_format']}"
    )
    for key in sorted(properties):
        if key.startswith(("stillframe_", "image_", "instance_uuid")):
            say(f"  {key:26} {properties[key]}")
    say(f"\nThe guest was paused for {properties['stillframe_pause_ms']} ms.\n")
    places = {
        "try it yourself": f". {HOME.relative_to(ROOT)}/env.sh && openstack server list",
        "logs": f"{cloud.log_directory}/n-api.log, {cloud.log_directory}/n-cpu.log",
        "clients": str(cloud.clouds_file),
        "configuration": str(cloud.config_file),
        "API": cloud.api_url,
        "libvirt": f"virsh -c '{cloud.libvirtd.uri}' list",
        "guest's console": str(guest.console._path),
        "stop it all": "make demo-down",
    }
    for what, where in places.items():
        say(f"  {what:16} {where}")


def _story(cloud: Cloud, image_id: str) -> list[str]:
    """Return the lines of the request that made the image, from both logs, in time's order."""
    lines = [
        (line, name)
        for name in ("n-api.log", "n-cpu.log")
        for line in (cloud.log_directory / name).read_text().splitlines()
    ]
    asked = next(line for line, _ in lines if "asks for a snapshot" in line and image_id in line)
    request_id = next(word for word in asked.replace("[", " ").split() if word.startswith("req-"))
    return [
        f"{line.split()[1]} {name:9} {line.rpartition(']')[2].strip()}"
        for line, name in sorted(lines)
        if request_id in line
    ]


def _told(what: str, make: Callable[..., Any], *arguments: Any) -> Any:
    began = time.monotonic()
    result = make(*arguments)
    if time.monotonic() - began > 1:
        say(f"Made {what} in {time.monotonic() - began:.0f} s")
    return result


def _await_all(*work: Future[Any]) -> None:
    for one in work:
        one.result()


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
