# SPDX-License-Identifier: Apache-2.0
"""The tree stays readable: sizes, names and types of what is in it."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "api_service", "compute_agent")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERYTHING = SOURCES + sorted(
    path for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.py")
)

MODULE_LINES = 400
FUNCTION_LINES = 50
MEDIAN_FUNCTION_LINES = 10


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_a_module_fits_in_the_head(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MODULE_LINES, f"{name_of(path)} has {lines} lines: split it by reason to change"


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    long = {node.name: length(node) for node in functions(path) if length(node) > FUNCTION_LINES}
    assert not long, f"{name_of(path)}: {long}"


def test_most_functions_are_a_few_lines() -> None:
    lengths = [length(node) for path in SOURCES for node in functions(path)]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_and_its_public_names_say_what_they_are_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    silent = [] if ast.get_docstring(tree) else ["the module itself"]
    for node in tree.body:
        public = not getattr(node, "name", "_").startswith("_")
        if (
            public
            and isinstance(node, ast.ClassDef | ast.FunctionDef)
            and not ast.get_docstring(node)
        ):
            silent.append(node.name)
    assert not silent, f"{name_of(path)} lacks docstrings: {silent}"


def test_imports_point_one_way() -> None:
    """Every contract of setup.cfg's [importlinter] holds."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
