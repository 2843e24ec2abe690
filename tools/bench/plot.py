# SPDX-License-Identifier: Apache-2.0
"""Draws the figures as an SVG: horizontal bars, one panel a quantity, one row of panels a case.

No library: an SVG is text, and a browser, or rsvg-convert, makes a PNG of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

_WIDTH = 430
_LABEL = 150
_VALUE = 62
_BAR = 16
_GAP = 6
_HEAD = 46
_FOOT = 38
_MARGIN = 20
_AREA = _WIDTH - _LABEL - _VALUE

_OURS, _THEIRS, _LIMIT = "#2b6cb0", "#d9822b", "#8a8f98"
_COLOURS = {
    "nova-live": _THEIRS,
    "nova-cold": _THEIRS,
    "cold-lean-put": _THEIRS,
    "pause-straightforward": _THEIRS,
    "pause-bare": _LIMIT,
    "put": _LIMIT,
    "put-chunked": _LIMIT,
    "read": _LIMIT,
}
_LEGEND = (("Stillframe", _OURS), ("other ways", _THEIRS), ("limits", _LIMIT))
_WHOLE_FROM = 100
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_TICKS = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What a panel shows: `key` of a row; `mark` is a value that gets a line across."""

    title: str
    key: str
    log: bool = False
    mark: float | None = None


QUANTITIES = (
    Quantity(title="wall time / bare PUT of the same bytes (red)", key="wall_vs_put", mark=1),
    Quantity(title="vCPUs stopped, ms (median; log scale)", key="pause_ms_p50", log=True),
    Quantity(title="CPU of the tool, s", key="cpu_s"),
    Quantity(
        title="guest's write latency, p99 during / quiet (red: the goal)",
        key="write_p99_ratio",
        mark=4,
    ),
)


def svg(found: dict[str, Any]) -> str:
    """Return a picture of a report's rows; quantities that no row of a case has are left out."""
    parts = list(_legend(_MARGIN, _MARGIN))
    width = height = 0.0
    y = 3.0 * _MARGIN
    for case in dict.fromkeys(row["case"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["case"] == case]
        panels = [
            (one, bars)
            for one in QUANTITIES
            if (bars := [(row["method"], row[one.key]) for row in rows if row[one.key]])
        ]
        parts.append(_text(_MARGIN, y + 14, case, size=16, weight="bold"))
        tallest = 0.0
        for at, (quantity, bars) in enumerate(panels):
            x = _MARGIN + at * (_WIDTH + _MARGIN)
            parts += _panel(x, y + 22, quantity, bars)
            tallest = max(tallest, _height(bars))
            width = max(width, x + _WIDTH)
        y += 22 + tallest + _MARGIN
        height = y
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + _MARGIN:.0f}" '
            f'height="{height:.0f}" font-family="sans-serif">',
            '<rect width="100%" height="100%" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def ticks(largest: float, *, log: bool) -> list[float]:
    """Return round values from 0 (or, `log`, a power of ten) until one is beyond `largest`."""
    if log:
        return [10.0**power for power in range(max(1, math.ceil(math.log10(largest))) + 1)]
    step = next((one for one in _STEPS if largest / one <= _TICKS), _STEPS[-1])
    return [round(number * step, 3) for number in range(math.ceil(largest / step) + 1)]


def _panel(
    x: float, y: float, quantity: Quantity, bars: Sequence[tuple[str, float]]
) -> Iterator[str]:
    marks = ticks(max([*(value for _, value in bars), quantity.mark or 0]), log=quantity.log)
    left, top = x + _LABEL, y + _HEAD - 22
    bottom = top + len(bars) * (_BAR + _GAP) + _GAP
    yield _text(x, y + 12, quantity.title, size=12)
    for mark in marks:
        at = left + _share(mark, marks, quantity) * _AREA
        yield _line(at, top, at, bottom, "#e2e5e9")
        yield _text(at, bottom + 14, f"{mark:g}", size=10, anchor="middle")
    for number, (name, value) in enumerate(bars):
        bar_y = top + _GAP + number * (_BAR + _GAP)
        length = max(1.0, _share(value, marks, quantity) * _AREA)
        yield _text(left - 6, bar_y + 12, name, size=11, anchor="end")
        yield (
            f'<rect x="{left:.1f}" y="{bar_y:.1f}" width="{length:.1f}" height="{_BAR}" '
            f'fill="{_COLOURS.get(name, _OURS)}"/>'
        )
        yield _text(left + length + 4, bar_y + 12, _number(value), size=11)
    if quantity.mark is not None:
        at = left + _share(quantity.mark, marks, quantity) * _AREA
        yield _line(at, top, at, bottom, "#c53030")
    yield _line(left, top, left, bottom, "#4a5568")


def _height(bars: Sequence[Any]) -> float:
    return _HEAD - 22 + len(bars) * (_BAR + _GAP) + _GAP + _FOOT


def _share(value: float, marks: Sequence[float], quantity: Quantity) -> float:
    """Return where on the axis a value lies, 0 to 1."""
    if not quantity.log:
        return value / marks[-1]
    low, high = math.log10(marks[0]), math.log10(marks[-1])
    return max(0.0, (math.log10(value) - low) / (high - low))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= _WHOLE_FROM else f"{value:.3g}"


def _legend(x: float, y: float) -> Iterator[str]:
    for number, (name, colour) in enumerate(_LEGEND):
        at = x + number * _LABEL
        yield f'<rect x="{at:.1f}" y="{y:.1f}" width="12" height="12" fill="{colour}"/>'
        yield _text(at + 18, y + 11, name, size=12)


def _text(
    x: float, y: float, text: str, *, size: int, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="#1a202c">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
