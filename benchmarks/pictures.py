"""Pictures of growth, as SVG: a row of small charts, drawn without any library. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 300, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 46, 44
INK, PALE, LINE = "#1b2733", "#d5dae0", "#1d5fa8"
STEPS = 4


@dataclass(frozen=True)
class Chart:
    """Values at sizes. The sizes stand side by side, whatever is between them: read the labels."""

    title: str
    unit: str
    labels: Sequence[str]
    values: Sequence[float]


def row_of(charts: Sequence[Chart], caption: str) -> str:
    """The charts side by side; `caption` says for readers who do not see them what they show."""
    width = WIDTH * len(charts)
    drawn = "".join(
        f'<g transform="translate({WIDTH * number} 0)">{_chart(one)}</g>\n'
        for number, one in enumerate(charts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" '
        f'aria-label="{escape(caption)}">\n'
        f'<rect width="{width}" height="{HEIGHT}" rx="10" fill="#f7f8fa"/>\n{drawn}</svg>\n'
    )


def top_of_scale(largest: float) -> float:
    """The least of 1, 2, 2.5, 4, 5, 8 or 10 times a power of ten that `largest` does not exceed."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 8, 10, 20) if step * power >= largest)


def _chart(chart: Chart) -> str:
    top = top_of_scale(max(chart.values))
    inner = HEIGHT - TOP - BOTTOM
    step = (WIDTH - LEFT - RIGHT) / max(1, len(chart.values) - 1)
    points = [
        (LEFT + number * step, TOP + inner * (1 - value / top))
        for number, value in enumerate(chart.values)
    ]
    parts = [
        f'<text x="{LEFT}" y="24" fill="{INK}" font-weight="600">{escape(chart.title)}</text>',
        f'<text x="{LEFT}" y="39" fill="{INK}" font-size="11">{escape(chart.unit)}</text>',
    ]
    for number in range(STEPS + 1):
        y = TOP + inner * (1 - number / STEPS)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{PALE}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="{INK}">'
            f"{_number(top * number / STEPS)}</text>"
        )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    for (x, y), label in zip(points, chart.labels, strict=True):
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{LINE}"/>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="{INK}">'
            f"{escape(label)}</text>"
        )
    return "\n".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def size_label(size: int) -> str:
    """`10 k`, `1 M`."""
    for unit, word in ((1_000_000, "M"), (1000, "k")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {word}"
    return str(size)
