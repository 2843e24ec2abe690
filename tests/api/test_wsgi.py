# SPDX-License-Identifier: Apache-2.0
"""Under another WSGI server nobody knows who can reach it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import sys
import falcon.testing
from api_service.wsgi import application
client = falcon.testing.TestClient(application)
print(client.simulate_get("/", remote_addr=sys.argv[1]).status_code)
"""
_SYNC = "from api_service.manage import main; raise SystemExit(main())"


@pytest.mark.parametrize(
    ("anywhere", "caller", "status"),
    [(False, "127.0.0.1", 200), (False, "192.0.2.7", 403), (True, "192.0.2.7", 200)],
)
def test_noauth_serves_its_own_host_unless_asked_for_more(
    tmp_path: Path, anywhere: bool, caller: str, status: int
) -> None:
    config = tmp_path / "api.conf"
    config.write_text(
        f"[DEFAULT]\nstate_path = {tmp_path}\ntransport_url = fake://\n"
        "[glance]\nendpoint_override = http://127.0.0.1:1\n"
        f"[api]\nauth_strategy = noauth\nnoauth_anywhere = {anywhere}\n"
    )
    sync = [sys.executable, "-c", _SYNC, "--config-file", str(config), "db", "sync"]
    subprocess.run(sync, check=True, timeout=60, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, caller],
        env={**os.environ, "STILLFRAME_CONFIG_FILES": str(config)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.endswith(f"{status}\n"), done.stderr
