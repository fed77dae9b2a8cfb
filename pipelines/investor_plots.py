"""Bar charts as SVG elements: for a page of two plots, matplotlib takes 170 times as long."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 920, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 110, 10, 34, 30
_MAX_TICKS = 5


class Bar(NamedTuple):
    """A bar of a chart.

    Attributes:
        name: text below the axis.
        bottom: value at which the bar begins.
        top: value at which it ends, above or below `bottom`.
        colour: CSS colour.
        labels: lines of text above the bar.
    """

    name: str
    bottom: float
    top: float
    colour: str
    labels: tuple[str, ...]


def chart(title: str, note: str, bars: Sequence[Bar], axis: tuple[float, float], unit: str) -> str:
    """A bar chart.

    Args:
        title: text above the chart, on the left.
        note: small text above the chart, on the right.
        bars: the bars from left to right.
        axis: lowest and highest value shown.
        unit: text after the numbers of the axis.
    """
    low, high = axis
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * inner_height

    parts = [
        _text(_LEFT, 16, title, "font-weight='600' font-size='14'"),
        _text(_WIDTH - _RIGHT, 16, note, "text-anchor='end' font-size='11' fill='#67727e'"),
    ]
    for tick, words in _ticks(low, high):
        at = y(tick)
        line = f"x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{at:.1f}' y2='{at:.1f}'"
        parts.append(f"<line {line} stroke='#e3e6ea'/>")
        parts.append(_text(_LEFT - 8, at + 4, words + unit, "text-anchor='end'"))
    step = inner_width / len(bars)
    for number, bar in enumerate(bars):
        middle = _LEFT + (number + 0.5) * step
        upper, lower = y(max(bar.bottom, bar.top)), y(min(bar.bottom, bar.top))
        parts.append(
            f"<rect x='{middle - 0.3 * step:.1f}' y='{upper:.1f}' width='{0.6 * step:.1f}' "
            f"height='{lower - upper:.1f}' fill='{bar.colour}'/>"
        )
        for line_number, words in enumerate(reversed(bar.labels)):
            parts.append(_text(middle, upper - 5 - 14 * line_number, words, _CENTRED))
        parts.append(_text(middle, _HEIGHT - _BOTTOM + 18, bar.name, _CENTRED))
    base = y(low)
    line = f"x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{base:.1f}' y2='{base:.1f}'"
    parts.append(f"<line {line} stroke='#27313b'/>")
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' font-size='12' "
        f"role='img' aria-label='{html.escape(title, quote=True)}'>{''.join(parts)}</svg>"
    )


_CENTRED = "text-anchor='middle'"


def _text(x: float, y: float, words: str, style: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{html.escape(words)}</text>"


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round values between two others, a few more than `_MAX_TICKS` at most, with their text."""
    rough = (high - low) / _MAX_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    decimals = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step), math.floor(high / step)
    return [(number * step, f"{number * step:,.{decimals}f}") for number in range(first, last + 1)]
