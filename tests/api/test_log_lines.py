# SPDX-License-Identifier: Apache-2.0
"""The log as a file, in a process of its own: no request writes a line of its choice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import sys
from falcon import testing
from api_service.app import LOG_FILE, PROG, make_parts, make_database
from common import conf, log
settings = conf.load(sys.argv[1:], PROG)
log.setup(settings, LOG_FILE)
make_database(settings).sync()
http = testing.TestClient(make_parts(settings).application)
http.simulate_get("/v2.1/x%0A2026-01-01%20INFO%20forged%1B[2J", headers={"X-Auth-Token": "u:p"})
http.simulate_get("/v2.1/servers/%0Aforged", headers={"X-Auth-Token": "u:p"})
"""


def test_a_path_with_a_line_break_stays_in_its_line(tmp_path: Path) -> None:
    config = tmp_path / "api.conf"
    config.write_text(
        f"[DEFAULT]\nlog_dir = {tmp_path}\nstate_path = {tmp_path}\ntransport_url = fake://\n"
        "[api]\nauth_strategy = noauth\n"
        "[glance]\nendpoint_override = http://127.0.0.1:1\n"
    )
    command = [sys.executable, "-c", _PROGRAM, "--config-file", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "n-api.log").read_text().splitlines()
    assert [line for line in lines if "forged" in line]
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith(("forged", "2026-01-01 INFO"))]
