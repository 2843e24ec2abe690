# SPDX-License-Identifier: Apache-2.0
"""Benchmarks on real parts: `python -m tools.bench --help`; docs/benchmarks.md tells what counts.

cases.py    what is measured: disks, guests, methods, how often
ways/       the methods: ours, Nova's, the physical limits, stops
run.py      rounds in shuffled order, each method between two bare PUTs
stage.py    one case's guests on the private cloud
measure.py  counters of processes, threads and directories
client.py   what a user does: ask, wait, cancel, upload
figures.py  from samples to rows and ratios: pure
goals.py    the bounds that figures are held to
report.py   the table for people, the JSON for programs
host.py     on what it was measured
plot.py     the picture
api.py      requests a second: what is asked, of what; figures and ratios
load.py     the clients that ask
serve.py    what runs beside: the bare resource, an agent that does nothing
pause.py    the other benchmark: how long guests stand still, by disk and host settings
"""
