"""Pictures of a run, drawn by the sender from the spool: the training process never waits for them.

    history = History()
    history.add(step, {"loss": 2.5, "gate_attn/0": 0.1})
    loss_curves(history), gates_by_depth(history)
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS_KEPT = 1024
Floats = NDArray[np.float64]


class History:
    """Metrics by step, each thinned evenly by itself: a run of any length takes bounded memory, and of what is measured
    every hundred steps all the points are kept that there is room for."""

    def __init__(self) -> None:
        self._series: dict[str, _Thinned] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._series.setdefault(name, _Thinned()).add(step, value)

    def names(self, prefix: str) -> list[str]:
        """Names of metrics that start with ``prefix``; a number behind it sorts as a number."""
        found = (name for name in self._series if name.startswith(prefix))
        return sorted(found, key=lambda name: (len(name), name))

    def series(self, name: str) -> tuple[Floats, Floats]:
        """Steps and values of one metric."""
        points = self._series[name].kept if name in self._series else []
        return np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points], dtype=float)


class _Thinned:
    """Points of one metric."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, float]] = []
        self._stride = 1
        self._seen = 0

    def add(self, step: int, value: float) -> None:
        if self._seen % self._stride == 0:
            self.kept.append((step, value))
        self._seen += 1
        if len(self.kept) > POINTS_KEPT:
            self.kept = self.kept[::2]
            self._stride *= 2


def loss_curves(history: History) -> "Figure | None":
    """Loss over all data and by data set, each with its running mean; None before the first step."""
    names = [name for name in ("loss", *history.names("loss/")) if len(history.series(name)[0])]
    if not names:
        return None
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    for index, name in enumerate(names):
        steps, values = history.series(name)
        color = "black" if name == "loss" else f"C{index - 1}"
        axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        axes.plot(steps, running_mean(values), color=color, label=name.removeprefix("loss/"), linewidth=1.6)
    axes.set(xlabel="step", ylabel="loss (nats per supervised token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper right")
    return figure


def gates_by_depth(history: History) -> "Figure | None":
    """tanh of every gate over training (across) and depth (up); None for a model without gates."""
    panels = {
        title: history.names(prefix)
        for title, prefix in (("cross-attention gate", "gate_attn/"), ("feed-forward gate", "gate_ffn/"))
    }
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return None
    figure = _figure(5 * len(panels), 4)
    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    series = {name: history.series(name) for names in panels.values() for name in names}
    limit = max(1e-3, max(float(np.abs(values).max()) for _, values in series.values()))
    for axes, (title, names) in zip(all_axes, panels.items(), strict=True):
        steps = series[names[0]][0]
        layers = [int(name.rsplit("/", 1)[1]) for name in names]
        values = np.stack([np.interp(steps, *series[name]) for name in names])
        image = axes.pcolormesh(
            steps, layers, values, cmap="RdBu_r", vmin=-limit, vmax=limit, shading="nearest", rasterized=True
        )
        axes.set(title=title, xlabel="step", ylabel="LM layer")
        axes.set_yticks(layers[:: max(1, len(layers) // 9)])
    figure.colorbar(image, ax=list(all_axes), label="tanh(gate)")
    return figure


def attention_over_time(
    weights_TL: Floats, tokens: list[str], seconds: float, *, title: str = "", order: Floats | None = None
) -> "Figure":
    """Where on the audio's time line the tokens of an answer look.

    Args:
        weights_TL: attention of each answer token over the audio tokens, mean over layers and heads; rows sum to 1.
        tokens: the answer, one string per row.
        seconds: length of the audio.
        order: time in seconds of each audio token (HTS-AT's are not in order of time); by default evenly spaced.
    """
    num_tokens, num_keys = weights_TL.shape
    times = np.linspace(0, seconds, num_keys, endpoint=False) if order is None else order
    bins = np.unique(times)
    # Tokens of the same moment (HTS-AT: the two halves of the frequency axis) add up.
    weights = np.stack([weights_TL[:, times == moment].sum(axis=1) for moment in bins], axis=1)
    edges = np.append(bins, seconds)
    figure = _figure(9, 1.2 + 0.28 * num_tokens)
    axes = figure.subplots()
    image = axes.pcolormesh(edges, np.arange(num_tokens + 1), weights, cmap="magma", vmin=0, rasterized=True)
    axes.set(xlabel="seconds", title=title)
    axes.set_yticks(np.arange(num_tokens) + 0.5, tokens)
    axes.invert_yaxis()
    figure.colorbar(image, label="attention")
    return figure


def _figure(width: float, height: float) -> "Figure":
    # Imported only now: whoever reads a history, or asks without drawing, need not wait for it.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def running_mean(values: Floats) -> Floats:
    """Mean of what is finite over about a fortieth of the curve, shorter at its ends."""
    width = max(1, len(values) // 40)
    finite = np.isfinite(values)
    sums = np.cumsum(np.insert(np.where(finite, values, 0.0), 0, 0.0))
    counts = np.cumsum(np.insert(finite, 0, 0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    with np.errstate(invalid="ignore"):  # nothing finite: a gap
        return (sums[end] - sums[start]) / (counts[end] - counts[start])
