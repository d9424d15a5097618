"""Settings that follow from the data, and why: what ``tools/prepare_data.py stats`` recommends and ``tools/start.py``
begins with.

    for item in advise(statistics, config): print(item)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from megatron_af.audio.augment import FREQUENCY_WIDTH, TIME_SHARE
from megatron_af.config import AugmentConfig, Config, StageConfig
from megatron_af.prepare.statistics import Statistics

LONGEST_WINDOW_SECONDS = 10.0
"""AF-CLAP's window: longer clips are several windows."""
SHORTEST_WINDOW_SECONDS = 1.0
MOST = 0.95
"""Of the clips fit into one window."""
ROOM = 1.5
"""What is this many times too large is worth a change."""
MANY_PASSES = 20
"""Over the same recordings: that they are heard otherwise each time is worth a try."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One setting that the data asks for."""

    key: str
    now: str
    better: str
    why: str

    def __str__(self) -> str:
        return f"{self.key}: {self.better} (now {self.now}): {self.why}"


def fitting_window(seconds: Sequence[float]) -> float:
    """Seconds of a window that most clips fit into, on half seconds; at most AF-CLAP's."""
    most = float(np.quantile(seconds, MOST)) if seconds else LONGEST_WINDOW_SECONDS
    return min(LONGEST_WINDOW_SECONDS, max(SHORTEST_WINDOW_SECONDS, math.ceil(2 * most - 0.1) / 2))


def fitting_text(tokens: Sequence[int]) -> int:
    """Tokens that the longest text fits into, on eights."""
    return max(8, 8 * math.ceil(max(tokens, default=1) / 8))


def fitting_augment(passes: float, window_seconds: float) -> AugmentConfig | None:
    """HTS-AT's stripes, where a stage hears the same recordings many times; else None."""
    if passes < MANY_PASSES:
        return None
    return AugmentConfig(time_seconds=round(round(TIME_SHARE, 3) * window_seconds, 3), mel_bins=FREQUENCY_WIDTH)


def advise(statistics: Statistics, config: Config) -> list[Advice]:
    """What the data set asks for and the configuration has otherwise, for the stages that train on it."""
    readers = {name: stage for name, stage in config.curriculum.items() if statistics.name in stage.blend}
    found = [*_window(statistics, config)]
    for name, stage in readers.items():
        found += [*_lengths(statistics, config, name, stage), *_augmentation(statistics, config, name, stage)]
    return [*found, *_order(statistics, config, readers)]


def table(advice: Sequence[Advice], name: str) -> Table:
    """For the terminal."""
    grid = Table("setting", "now", "better", "why", title=f"{name}: settings that the data asks for")
    for item in advice:
        grid.add_row(item.key, item.now, item.better, item.why)
    return grid


def _window(statistics: Statistics, config: Config) -> Iterator[Advice]:
    if not (seconds := statistics.seconds):
        return
    window, better = config.model.front_end.window_seconds, fitting_window(seconds)
    if better * ROOM <= window and "encoder" not in _given(config):
        padded = 1 - float(np.mean(np.minimum(seconds, window))) / window
        yield Advice(
            key="model.front_end.window_seconds",
            now=f"{window:g}",
            better=f"{better:g}",
            why=f"clips last {np.median(seconds):.2g} s (95% of them at most {np.quantile(seconds, MOST):.2g}), so "
            f"{padded:.0%} of a window is padding, and a window's tokens stand for its whole length",
        )


def _lengths(statistics: Statistics, config: Config, name: str, stage: StageConfig) -> Iterator[Advice]:
    front, longest = config.model.front_end, max(statistics.seconds, default=0.0)
    heard = front.heard_seconds(stage.max_windows)
    needed = max(statistics.windows, default=1)
    if longest > heard + 0.01 or stage.max_windows > needed:
        cut = sum(seconds > heard for seconds in statistics.seconds) / max(1, len(statistics.seconds))
        why = f"{cut:.1%} of the clips are longer than {heard:g} s, the longest {longest:.3g} s: the rest is not heard"
        yield Advice(
            key=f"curriculum.{name}.max_windows",
            now=str(stage.max_windows),
            better=str(needed),
            why=why if cut else f"no clip is longer than {needed} window{'s' * (needed > 1)}",
        )
    text = fitting_text(statistics.tokens)
    if stage.objective == "answer" and statistics.tokens and stage.max_text_tokens > ROOM * text:
        yield Advice(
            key=f"curriculum.{name}.max_text_tokens",
            now=str(stage.max_text_tokens),
            better=str(text),
            why=f"the longest text has {max(statistics.tokens)} tokens; memory and batches are planned for the rest",
        )


def _augmentation(statistics: Statistics, config: Config, name: str, stage: StageConfig) -> Iterator[Advice]:
    """An encoder that hears few recordings many times learns them by heart."""
    encoder, window = config.model.encoder, config.model.front_end.window_seconds
    learns = encoder.kind == "htsat" and stage.trains("encoder.norm.weight") and statistics.seconds
    share = stage.blend[statistics.name] / sum(stage.blend.values())
    passes = stage.passes * stage.blend[statistics.name]
    if not passes and statistics.rows:
        passes = share * stage.steps * stage.global_batch_samples / statistics.rows
    better = fitting_augment(passes, window)
    if learns and better and stage.augment is None and not encoder.spec_augment:
        yield Advice(
            key=f"curriculum.{name}.augment",
            now="none",
            better=f"{{time_seconds: {better.time_seconds:g}, mel_bins: {better.mel_bins}}}",
            why=f"the encoder hears each recording {passes:.0f} times; blanked stripes, HTS-AT's share of a window of "
            f"{window:g} s, let no two times be alike. Hold it against a run without, on development rows",
        )


def _order(statistics: Statistics, config: Config, readers: dict[str, StageConfig]) -> Iterator[Advice]:
    """An encoder that begins with nothing learns from captions first, and only then from answers."""
    fresh = [
        name
        for name, stage in readers.items()
        if stage.objective == "answer" and not {"encoder", "all"} & stage.entry.keys()
    ]
    if fresh and statistics.captions and statistics.seconds:
        contrastive = [name for name, stage in config.curriculum.items() if stage.objective == "contrastive"]
        first = contrastive[0] if contrastive else "clap"
        yield Advice(
            key=f"curriculum.{fresh[0]}.entry.encoder",
            now="fresh",
            better=first,
            why="a fresh encoder hardly learns through the language model; AF-CLAP teaches it from the rows' captions"
            + ("" if contrastive else " (a stage with objective: contrastive, before this one)"),
        )


def _given(config: Config) -> set[str]:
    """Parts that come from elsewhere: their sizes are not free."""
    entries = [(part, origin) for stage in config.curriculum.values() for part, origin in stage.entry.items()]
    given = {part for part, origin in entries if origin not in config.curriculum}
    return given | ({"encoder"} if "all" in given else set())
