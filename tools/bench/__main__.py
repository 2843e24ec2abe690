# SPDX-License-Identifier: Apache-2.0
"""Runs a benchmark: `python -m tools.bench snapshot [--quick] [--json FILE] [--plot FILE.svg]`.

Must run as root in the interpreter of a venv with `stillframe[api,agent]`
(`.demo/venv` after `make demo`). docs/benchmarks.md says what is counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from tools.bench import plot, report
from tools.bench.cases import FULL, QUICK
from tools.bench.host import describe
from tools.bench.run import run
from tools.bench.ways import WAYS


def main() -> int:
    """Parse the arguments and run one of the benchmarks."""
    parser = argparse.ArgumentParser(prog="tools.bench")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    command = benchmarks.add_parser("snapshot", help="ours, Nova's way and the physical limits")
    command.add_argument("--quick", action="store_true", help="the 2 GiB disk, in five minutes")
    command.add_argument("--rounds", type=int, help="rounds of each case")
    command.add_argument("--only", nargs="+", choices=list(WAYS), help="these methods alone")
    command.set_defaults(measure=_snapshot)
    for one in benchmarks.choices.values():
        one.add_argument("--json", type=Path, help="write the figures to this file")
        one.add_argument("--plot", type=Path, help="draw them into this file, an SVG")
    arguments = parser.parse_args()
    found = arguments.measure(arguments)
    sys.stdout.write(report.table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.plot:
        arguments.plot.write_text(plot.svg(found))
    return 0


def _snapshot(arguments: argparse.Namespace) -> dict[str, Any]:
    plan = QUICK if arguments.quick else FULL
    changes: dict[str, Any] = {}
    if arguments.rounds:
        changes["rounds"] = arguments.rounds
    if arguments.only:
        changes["only"] = tuple(arguments.only)
    return report.report(run(dataclasses.replace(plan, **changes)), describe())


if __name__ == "__main__":
    sys.exit(main())
