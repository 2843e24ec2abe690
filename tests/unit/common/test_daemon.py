# SPDX-License-Identifier: Apache-2.0
"""A daemon obeys its signals, and no configuration file that an operator breaks ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# In a process of its own: signals, and oslo.config's one global object.
DAEMON = """
import logging, sys
from common import conf, daemon
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
settings = conf.load(["--config-file", sys.argv[1]], "test")

def reload():
    try:
        conf.read_again(settings)
    finally:
        print("limit is", settings.capture.bandwidth_limit, flush=True)

sys.exit(daemon.Daemon("test", [], stop_timeout_s=1, reload=reload).run())
"""

STOPPED_IN_ITS_START = """
import os, signal, sys
from common import daemon

class Slow:
    name = "slow"
    def start(self): os.kill(os.getpid(), signal.SIGTERM)
    def stop(self, deadline): print("slow stopped", flush=True)

class Next:
    name = "next"
    def start(self): print("next started", flush=True)

sys.exit(daemon.Daemon("test", [Slow(), Next()], stop_timeout_s=1).run())
"""

FAILS_LATER = """
import sys, threading
from common import daemon
from common.errors import ConfigurationError

class Works:
    name = "works"
    def start(self): threading.Thread(target=process.fail, args=(ConfigurationError("no"),)).start()
    def stop(self, deadline): print("works stopped", flush=True)

process = daemon.Daemon("test", [Works()], stop_timeout_s=1)
try:
    process.run()
except ConfigurationError as error:
    print("ended with:", error, flush=True)
"""

OUTLIVES_ITS_SCRIPT = """
import os
from common import daemon

if os.fork():
    os._exit(0)  # the script, first of its process group, has ended
daemon.lead_process_group()
daemon.lead_process_group()
print(os.getpgrp() == os.getpid(), flush=True)
"""

WORKS = "[capture]\nbandwidth_limit = {limit}\n"


class Running:
    """The daemon in its process, and the file that it reads."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(file)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.wait_for("test is ready")

    def wait_for(self, words: str) -> str:
        """Read on to the line that holds these words."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if words in line:
                return line
        raise AssertionError(f"the daemon ended, and never said {words!r}")

    def hang_up(self) -> None:
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        self._process.terminate()
        self._process.communicate(timeout=10)
        return self._process.returncode


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    file = tmp_path / "test.conf"
    file.write_text(WORKS.format(limit=5))
    daemon = Running(file)
    yield daemon
    daemon.stop()


@pytest.mark.parametrize(
    "broken",
    [
        "[capture\nbandwidth_limit = 7\n",
        "[capture]\nbandwidth_limit = fast\n",
        "[capture]\nbandwidth_limit = 7\n[api]\nbind_port = http\n",
        "[DEFAULT]\ndebug = perhaps\n[capture]\nbandwidth_limit = 7\n",
        None,
    ],
    ids=["no syntax", "a wrong value", "a wrong immutable value", "a wrong switch", "no file"],
)
def test_a_broken_file_is_told_and_changes_nothing(running: Running, broken: str | None) -> None:
    if broken is None:
        running.file.unlink()
    else:
        running.file.write_text(broken)
    running.hang_up()
    running.wait_for("limit is 5")
    reason = running.wait_for("options not read; the old ones stay: ").partition("stay: ")[2]
    assert len(reason.strip()) > len("SystemExit")
    running.file.write_text(WORKS.format(limit=9))
    running.hang_up()
    running.wait_for("limit is 9")
    running.wait_for("test obeys them")
    assert running.stop() == 0


def test_told_to_stop_in_its_start_it_starts_no_more() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_ITS_START],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "slow stopped\n"), done.stderr


def test_what_fails_later_ends_it_in_order_and_with_its_reason() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILS_LATER],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.splitlines() == ["works stopped", "ended with: no"]


def test_one_that_outlives_the_script_that_started_it_leads_a_process_group() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUTLIVES_ITS_SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        start_new_session=True,
    )
    assert done.stdout == "True\n"
