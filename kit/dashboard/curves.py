"""Curves as inline SVG of bounded size, whatever the number of epochs.

The lines stretch with the page (`preserveAspectRatio="none"`, strokes that do not scale) while all text is HTML beside
them, so that it has one size on a phone and on a wide screen. Colours are of middle lightness and the rest is the
page's own text colour, so that both themes can be read.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kit.dashboard.facts import Row

COLOURS = ("#4a86f7", "#e8833a", "#2fa866", "#a06ee8", "#e0589a", "#18a2ab")
MOST = 80  # buckets of points; each keeps its lowest and its highest
MARKS = 60  # resume lines

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """One curve: its points by epoch, a gap where a value is None; the legend leaves out a dashed one."""

    name: str
    colour: str
    points: Points
    dashed: bool = False


def losses(rows: Sequence[Row], now: dict[str, float | None], at: float) -> list[Line]:
    """Return the losses' curves: training solid, validation dashed.

    The running means of the current epoch, `now`, are the last points; their place in epochs is `at`.
    """
    names = list(dict.fromkeys([key.removeprefix("train/") for row in rows for key in row if key.startswith("train/")]))
    names = names or list(now)
    lines = []
    for name, colour in zip(names, COLOURS, strict=False):
        short = name.removesuffix("_loss")
        trained = _points(rows, f"train/{name}")
        if now.get(name) is not None and (not rows or at > rows[-1].get("epoch", 0)):
            trained.append((at, now[name]))
        lines.append(Line(short, colour, trained))
        lines.append(Line(f"{short}, validation", colour, _points(rows, f"val/{name}"), dashed=True))
    return lines


def measures(rows: Sequence[Row]) -> list[Line]:
    """Return the curves of mAP, or of accuracy."""
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith("metrics/")]
    shown = [name for name in names if "mAP" in name or "accuracy" in name]
    for letter in "MP":  # masks and key points go before their boxes
        shown = [name for name in shown if name.endswith(f"({letter})")] or shown
    shown.sort(key=lambda name: ("mAP50-95" not in name and "top1" not in name, name))
    labels = [name.removeprefix("metrics/").partition("(")[0].replace("accuracy_top", "top-") for name in shown]
    points = [_points(rows, name) for name in shown]
    return [Line(*each) for each in zip(labels, COLOURS, points, strict=False)]


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float | None]]:
    return [(row["epoch"], row.get(name)) for row in rows if "epoch" in row]


def chart(
    title: str,
    lines: Sequence[Line],
    end: float,
    marks: Sequence[float] = (),
    best: tuple[float, float] | None = None,
) -> str:
    """Draw a chart as HTML: the axis ends at the epoch `end`, `marks` are epochs with a resume line, `best` a point."""
    lines = [line for line in lines if any(value is not None for _, value in line.points)]
    legend = "".join(
        f'<span><i style="background:{line.colour}"></i>{html.escape(line.name)} '
        f"<b>{_short(next(value for _, value in reversed(line.points) if value is not None))}</b></span>"
        for line in lines
        if not line.dashed
    )
    if any(line.dashed for line in lines):
        legend += '<span class="kit-mute"><i class="kit-dash"></i>validation</span>'
    if marks:
        legend += '<span class="kit-mute"><i class="kit-here"></i>resumed</span>'
    head = f'<div class="kit-legend"><span class="kit-mute">{html.escape(title)}</span>{legend}</div>'
    if not any(sum(value is not None for _, value in line.points) > 1 for line in lines):
        return f'<div class="kit-chart">{head}<div class="kit-plot kit-none">no curve yet</div></div>'
    first = min(x for line in lines for x, _ in line.points)
    last = max(end, max(x for line in lines for x, _ in line.points), first + 1)
    low, high, ticks = _scale([value for line in lines for _, value in line.points if value is not None])

    def across(x: float) -> float:
        return 100 * (x - first) / (last - first)

    def up(value: float) -> float:
        return 100 * (value - low) / (high - low)

    drawn = [f'<path class="kit-grid" d="M0 {100 - up(tick):.1f}H100"/>' for tick in ticks]
    inside = [mark for mark in marks if first <= mark <= last]
    drawn += [f'<path class="kit-mark" d="M{across(mark):.2f} 0V100"/>' for mark in inside[-MARKS:]]
    for line in lines:
        dash = ' stroke-dasharray="4 3" opacity=".75"' if line.dashed else ""
        drawn.append(f'<path stroke="{line.colour}"{dash} d="{_path(line.points, across, up)}"/>')
    texts = [f'<span class="kit-y" style="bottom:{up(tick):.1f}%">{tick:.4g}</span>' for tick in ticks]
    texts += [f'<span class="kit-x" style="left:{across(x):.1f}%">{x:g}</span>' for x in _whole(first, last)]
    if best:
        place = f"left:{across(best[0]):.2f}%;bottom:{min(up(best[1]), 100):.2f}%"
        texts.append(f'<span class="kit-best" style="{place}" title="best: epoch {best[0]:g}"></span>')
    label = html.escape(f"{title}, epochs {first:g} to {last:.4g}")
    return (
        f'<div class="kit-chart">{head}<div class="kit-plot">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{label}">{"".join(drawn)}</svg>'
        f"{''.join(texts)}</div></div>"
    )


def thin(points: Points, buckets: int = MOST) -> list[tuple[float, float | None]]:
    """Keep of many points the lowest and the highest of each bucket, in their order, and the last one."""
    if len(points) <= 2 * buckets:
        return list(points)
    kept: list[tuple[float, float | None]] = []
    for number in range(buckets):
        part = points[len(points) * number // buckets : len(points) * (number + 1) // buckets]
        known = [(x, value) for x, value in part if value is not None]
        ends = (min(known, key=lambda each: each[1]), max(known, key=lambda each: each[1])) if known else part[:1]
        kept += sorted(set(ends))
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _path(points: Points, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    words, pen = [], "M"
    for x, value in thin(points):
        if value is None:
            pen = "M"
            continue
        words.append(f"{pen}{across(x):.2f} {100 - up(value):.2f}")
        pen = "L"
    if len(words) == 1:  # a lone point is drawn as a dot: a line of no length with round ends
        words.append("h0")
    return "".join(words)


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Return the ends of the axis and two to five round numbers on it; the first outliers of many are cut off."""
    values = sorted(values)
    cut = len(values) // 50
    low, high = values[0], values[-1 - cut]
    if 0 < low < 0.6 * high:
        low = 0.0
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    step = _round_up((high - low) / 4)
    low = math.floor(low / step + 1e-9) * step
    ticks = [low + number * step for number in range(round((high - low) / step) + 2)]
    high = max(high, ticks[1])
    return low, high * 1.03 if high > 0 else high + 0.03 * (high - low), [tick for tick in ticks if tick <= high]


def _whole(first: float, last: float) -> list[int]:
    """Return the first and at most five more whole numbers, round ones, up to the last."""
    step = round(_round_up(max(1, math.ceil((last - first) / 5))))
    inner = [x for x in range(math.ceil(first), math.floor(last) + 1) if x % step == 0]
    return sorted({math.ceil(first), *(x for x in inner if x - first >= step / 2)})


def _round_up(step: float) -> float:
    """Return the first of 1, 2, 2.5, 5, 10, 20, 25 and so on that is hardly less than a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def _short(value: float) -> str:
    """Write a number with three digits that count."""
    return f"{value:#.3g}".rstrip(".") if 0.001 <= abs(value) < 999.5 else f"{value:.2g}"
