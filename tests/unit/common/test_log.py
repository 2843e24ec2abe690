# SPDX-License-Identifier: Apache-2.0
"""A message is one line, whatever somebody put into it."""

from __future__ import annotations

import logging
import sys

import pytest

from common.log import OneLineRecord


def record(message: str, *values: object, exc_info: object = None) -> logging.LogRecord:
    return OneLineRecord("n", logging.INFO, "f", 1, message, values, exc_info)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/v2.1/x\n2026-01-01 INFO forged", r"/v2.1/x\n2026-01-01 INFO forged"),
        ("a\r\x1b[31m\x00\x7f", r"a\r\x1b[31m\x00\x7f"),
        ("\x85\u2028\u2029", r"\x85\u2028\u2029"),
        ("\ud800", r"\ud800"),
        ("Größe ✓ 100%", "Größe ✓ 100%"),
    ],
)
def test_what_would_begin_a_line_is_shown_escaped(given: str, shown: str) -> None:
    assert record("GET %s", given).getMessage() == f"GET {shown}"
    assert record("GET " + given.replace("%", "%%"), *()).getMessage().isprintable()


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        made = record("failed\n", exc_info=sys.exc_info())
    first, *rest = logging.Formatter().format(made).splitlines()
    assert first == r"failed\n"
    assert rest[-1] == "ValueError: boom"
