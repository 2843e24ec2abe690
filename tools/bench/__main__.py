# SPDX-License-Identifier: Apache-2.0
"""Runs a benchmark: `python -m tools.bench snapshot [--quick] [--rounds N] [--json FILE]`.

Must run in the interpreter of a venv with `stillframe[api,agent]` and requests
(`.demo/venv` after `make demo`). Everything is measured from outside: the
guest's own heartbeat, /proc, the scratch directory, and a bare PUT of the same
bytes to the same Glance beside each snapshot.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.bench import snapshot


def main() -> int:
    """Parse the arguments, run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="tools.bench")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    command = benchmarks.add_parser("snapshot", help="snapshots of running and shut-off guests")
    command.add_argument("--quick", action="store_true", help="the small disk alone")
    command.add_argument("--rounds", type=int, default=5, help="rounds of each case")
    command.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    cases = snapshot.CASES[:1] if arguments.quick else snapshot.CASES
    report = snapshot.run(cases, arguments.rounds)
    sys.stdout.write(snapshot.table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
