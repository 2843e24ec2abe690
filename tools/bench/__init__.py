# SPDX-License-Identifier: Apache-2.0
"""Benchmarks on real parts: `python3 -m tools.bench snapshot --help`."""
