"""Charts as HTML and SVG that follow the reader's light or dark and stay legible on a phone.

    lines({"loss": (steps, values)}, "step", "nats per token")
    bars([Bar(label="order", value=51.3, low=48.0, high=55.1, marks={"commonest answer": 8.3})])
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_af.tracking.pictures import running_mean

Floats = NDArray[np.float64]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 220, 42, 34, 8
"""Of a chart, in the pixels of a phone; a wider page shows several side by side."""
MOST_POINTS, MOST_COLUMNS = 300, 90
"""Of a line, and of a field of gates."""
COLORS = 8
STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 1em }
figure { margin: 0 } figcaption { font-size: 13px } svg { width: 100%; height: auto; display: block }
svg text { font: 11px system-ui, sans-serif; fill: var(--faint) } .grid { stroke: var(--line); stroke-width: 1 }
.line { fill: none; stroke-width: 1.8; vector-effect: non-scaling-stroke } .thin { stroke-width: .7; opacity: .35 }
.dashed { stroke-dasharray: 5 4 }
.key { display: inline-block; white-space: nowrap; margin-right: 1em; color: var(--faint) }
.key i { display: inline-block; width: 14px; height: 3px; margin-right: .4em; vertical-align: middle }
.bar { display: grid; grid-template-columns: minmax(6em, 11em) 1fr 7em; gap: .6em; align-items: center;
  margin: .25em 0 }
.track { position: relative; height: 18px; background: var(--plane); border-radius: 3px }
.track > * { position: absolute; top: 0; bottom: 0 }
.fill { left: 0; background: var(--accent); opacity: .75; border-radius: 3px }
.whisker { top: 8px !important; bottom: 8px !important; background: var(--text) }
.mark { width: 3px; margin-left: -1px }
.share { display: flex; height: 22px; border-radius: 3px; overflow: hidden; background: var(--plane) }
.matrix td, .matrix th { padding: .25em .5em; text-align: center; border: 1px solid var(--line) }
.matrix th:first-child { text-align: right; position: sticky; left: 0; background: var(--page) }
"""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A number in percent, with what it is compared with."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    marks: dict[str, float] = field(default_factory=dict)
    note: str = ""


def lines(
    series: Mapping[str, tuple[Floats, Floats]], xlabel: str, ylabel: str, dashed: Sequence[str] = ()
) -> str:
    """Curves with their running means; those that are ``dashed`` are drawn as they are. Empty without a point."""
    series = {name: _finite(*points) for name, points in series.items()}
    series = {name: points for name, points in series.items() if len(points[0])}
    if not series:
        return ""
    smooth = {n: (x, y if n in dashed or len(y) < 20 else running_mean(y)) for n, (x, y) in series.items()}
    # The first steps of a fresh model would take most of the height.
    top = max(float(np.quantile(y, 0.98)) for _, y in smooth.values())
    low = min(0.0, *(float(y.min()) for _, y in smooth.values()))
    first, last = min(float(x[0]) for x, _ in series.values()), max(float(x[-1]) for x, _ in series.values())
    across, up = _ticks(first, last, 4), _ticks(low, top, 5)
    first, last, low, top = min(first, across[0]), max(last, across[-1]), min(low, up[0]), max(top, up[-1])
    plot_width, plot_height = WIDTH - LEFT - 6, HEIGHT - BOTTOM - TOP

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + plot_width * (x - first) / (last - first or 1),
            TOP + plot_height * (1 - min(1.0, (y - low) / (top - low or 1))),
        )

    parts = []
    for tick in up:
        y = at(first, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 6}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text x="{at(tick, low)[0]:.1f}" y="{HEIGHT - 19}" text-anchor="middle">{tick:g}</text>' for tick in across
    ]
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(xlabel)}</text>')
    keys = []
    for number, name in enumerate(series):
        color = f"var(--c{number % COLORS})"
        if name not in dashed and len(series[name][0]) >= 20:
            parts.append(_path(series[name], at, "line thin", color))
        parts.append(_path(smooth[name], at, "line dashed" if name in dashed else "line", color))
        keys.append((name, color))
    caption = f'<div class="faint">{escape(ylabel)}</div>{_legend(keys)}'
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(ylabel)}">{"".join(parts)}</svg>'
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def field_of(values_LC: Floats, rows: Sequence[str], columns: Floats, title: str, xlabel: str, ylabel: str) -> str:
    """Numbers around zero as colours: blue below, red above; the first row lowest."""
    if values_LC.shape[1] > MOST_COLUMNS:
        chosen = np.linspace(0, values_LC.shape[1] - 1, MOST_COLUMNS).astype(int)
        values_LC, columns = values_LC[:, chosen], columns[chosen]
    limit = max(1e-3, float(np.abs(values_LC).max()))
    height, width = (HEIGHT - BOTTOM - TOP) / len(values_LC), (WIDTH - LEFT - 6) / values_LC.shape[1]
    parts = []
    for row, value_C in enumerate(values_LC):
        y = TOP + height * (len(values_LC) - 1 - row)
        for column, value in enumerate(value_C.tolist()):
            color = f"rgb(207 34 46 / {value / limit:.2f})" if value > 0 else f"rgb(9 105 218 / {-value / limit:.2f})"
            x = LEFT + width * column
            place = f'x="{x:.1f}" y="{y:.1f}" width="{width + 0.3:.1f}" height="{height:.1f}"'
            parts.append(f'<rect {place} fill="{color}"/>')
        if row % max(1, len(values_LC) // 8) == 0:
            middle = y + height / 2 + 4
            parts.append(f'<text x="{LEFT - 5}" y="{middle:.1f}" text-anchor="end">{escape(rows[row])}</text>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x, step = LEFT + (WIDTH - LEFT - 6) * share, columns[round(share * (len(columns) - 1))]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 19}" text-anchor="{anchor}">{step:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(xlabel)}</text>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    keys = _legend([(f"-{limit:.2g}", "rgb(9 105 218)"), (f"{limit:.2g}", "rgb(207 34 46)")])
    caption = f'<div class="faint">{escape(title)}; {escape(ylabel)} upwards</div>{keys}'
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def bars(rows: Sequence[Bar]) -> str:
    """A line per bar, 0 to 100%, with its interval and marks at what it is compared with."""
    names = list(dict.fromkeys(name for bar in rows for name in bar.marks))
    colors = {name: f"var(--c{number + 2})" for number, name in enumerate(names)}
    parts = [_legend([("right audio, with its 95% interval", "var(--accent)"), *colors.items()])] if names else []
    for bar in rows:
        track = [f'<span class="fill" style="width:{bar.value:.2f}%"></span>']
        if bar.low is not None and bar.high is not None:
            place = f"left:{bar.low:.2f}%;width:{bar.high - bar.low:.2f}%"
            track.append(f'<span class="whisker" style="{place}" title="{bar.low:.1f} to {bar.high:.1f}"></span>')
        for name, value in bar.marks.items():
            place = f"left:{value:.2f}%;background:{colors[name]}"
            track.append(f'<span class="mark" style="{place}" title="{escape(name)}: {value:.1f}"></span>')
        note = f' <span class="faint">{escape(bar.note)}</span>' if bar.note else ""
        parts.append(
            f'<div class="bar"><span>{escape(bar.label)}</span><span class="track">{"".join(track)}</span>'
            f"<span>{bar.value:.1f}%{note}</span></div>"
        )
    return "\n".join(parts)


def shares(parts: Mapping[str, float], told: Mapping[str, str]) -> str:
    """How a whole divides into parts, with what each is in words."""
    whole = sum(parts.values()) or 1.0
    colors = {name: f"var(--c{number % (COLORS - 1) + 1})" for number, name in enumerate(parts)}
    pieces = [
        f'<span style="width:{100 * value / whole:.2f}%;background:{colors[name]}" '
        f'title="{escape(name)}: {escape(told[name])}"></span>'
        for name, value in parts.items()
    ]
    keys = _legend([(f"{name}: {told[name]}", colors[name]) for name in parts])
    return f'<div class="share">{"".join(pieces)}</div><p>{keys}</p>'


def matrix(labels: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Wanted (lines) against answered (columns); what is right is on the diagonal."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = []
    for place, (label, row) in enumerate(zip(labels, counts, strict=True)):
        cells = []
        for column, count in enumerate(row):
            color = "var(--good)" if column == place else "var(--bad)"
            shade = 75 * count / (sum(row) or 1)
            style = f"background:color-mix(in srgb, {color} {shade:.0f}%, transparent)"
            cells.append(f'<td style="{style}">{count or ""}</td>')
        body.append(f"<tr><th>{escape(label)}</th>{''.join(cells)}</tr>")
    return f'<div class="wide"><table class="matrix"><tr><th></th>{head}</tr>{"".join(body)}</table></div>'


def _legend(keys: Sequence[tuple[str, str]]) -> str:
    items = [f'<span class="key"><i style="background:{color}"></i>{escape(name)}</span>' for name, color in keys]
    return "".join(items)


def _finite(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    good = np.isfinite(y)
    return x[good], y[good]


def _path(points: tuple[Floats, Floats], at: Any, kind: str, color: str) -> str:
    x, y = points
    chosen = np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(int)
    places = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(float(x[i]), float(y[i])) for i in chosen))
    return f'<polyline class="{kind}" style="stroke:{color}" points="{places}"/>'


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``."""
    span = max(high - low, 1e-9)
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step for step in (1 * power, 2 * power, 5 * power, 10 * power) if step >= raw * 0.999)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(begin, end + 1)]
