# SPDX-License-Identifier: Apache-2.0
"""Runs a benchmark.

    python -m tools.bench snapshot [--quick] [--json FILE] [--plot FILE.svg]
    python -m tools.bench pause [--count N] [--json FILE] [--plot FILE.svg]
    python -m tools.bench restore [--rounds N] [--json FILE]
    python -m tools.bench api [--quick] [--noauth] [--json FILE]

Must run as root in the interpreter of a venv with `stillframe[api,agent]`
(`.demo/venv` after `make demo`). docs/benchmarks.md says what is counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

from tools.bench import api, goals, host, pause, plot, report, restore, run
from tools.bench.cases import CASES, QUICK, full
from tools.bench.ways import WAYS

_CASES = [case.name for case in CASES]


def main() -> int:
    """Parse the arguments and run one of the benchmarks."""
    parser = argparse.ArgumentParser(prog="tools.bench")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    command = benchmarks.add_parser("snapshot", help="ours, Nova's way and the physical limits")
    command.add_argument("--quick", action="store_true", help="the 2 GiB disk, in five minutes")
    command.add_argument("--rounds", type=int, default=5, help="of each case, if not --quick")
    selections = (("--case", _CASES), ("--only", list(WAYS)))
    for option, choices in selections:
        command.add_argument(
            option, nargs="+", choices=choices, metavar="NAME", help=f"of {', '.join(choices)}"
        )
    command.add_argument(
        "--image-store",
        type=Path,
        metavar="DIR",
        help="where Glance keeps its images, if not on the guests' disk: one of its own, a tmpfs",
    )
    command.set_defaults(measure=_snapshot)
    command = benchmarks.add_parser("pause", help="how long guests stand still, by disk and host")
    command.add_argument("--count", type=int, default=20, help="stops of each kind and guest")
    command.set_defaults(measure=_pause)
    for one in benchmarks.choices.values():
        one.add_argument("--plot", type=Path, help="draw them into this file, an SVG")
        one.set_defaults(table=report.table)
    command = benchmarks.add_parser("restore", help="rebuilds, beside bare GETs of the image")
    command.add_argument("--rounds", type=int, default=5, help="how many rebuilds")
    command.set_defaults(measure=_restore, table=restore.table, plot=None)
    command = benchmarks.add_parser("api", help="requests a second, beside a bare resource")
    command.add_argument("--quick", action="store_true", help="in three minutes")
    command.add_argument("--noauth", action="store_true", help="ask no Keystone")
    command.set_defaults(measure=_api, table=api.table, plot=None)
    for one in benchmarks.choices.values():
        one.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # libvirtd goes when it shall
    found = arguments.measure(arguments)
    sys.stdout.write(arguments.table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.plot:
        arguments.plot.write_text(plot.svg(found))
    return 0


def _snapshot(arguments: argparse.Namespace) -> dict[str, Any]:
    plan = QUICK if arguments.quick else full(arguments.rounds)
    cases = arguments.case or _CASES
    courses = tuple(one for one in plan.courses if one.case.name in cases)
    plan = dataclasses.replace(
        plan,
        courses=courses,
        only=tuple(arguments.only or ()),
        image_store=arguments.image_store,
    )
    return report.report(run.run(plan), run.ORDER, goals.of_snapshots, host.describe())


def _api(arguments: argparse.Namespace) -> dict[str, Any]:
    plan = api.QUICK if arguments.quick else api.Plan()
    return api.run(dataclasses.replace(plan, with_keystone=not arguments.noauth))


def _restore(arguments: argparse.Namespace) -> dict[str, Any]:
    return restore.run(arguments.rounds)


def _pause(arguments: argparse.Namespace) -> dict[str, Any]:
    samples = pause.run(arguments.count)
    return report.report(samples, pause.ORDER, pause.goals, host.describe())


if __name__ == "__main__":
    sys.exit(main())
