"""How long the samples of a stage are: from the data where it is there, else as given, else as long as they may be.

    found = lengths_of(config, stage, given)
    found.samples, found.total, found.told          # "2,000 of 48,000 rows of a, b", or what was assumed
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_af.config import Config, ConfigError, StageConfig
from megatron_af.config.effects import Nothing
from megatron_af.config.errors import suggestion
from megatron_af.config.loading import CONFIGS, read_values
from megatron_af.config.ranges import Count, Fraction, NotNegative, Whole
from megatron_af.data.rows import RowError
from megatron_af.data.sampler import BlendSampler
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot
from megatron_af.data.templates import STYLES, UnknownWords, answer_labels, render
from megatron_af.plan.load import Sample
from megatron_af.text.tokenizer import Tokenizer

LOOKED_AT = 1_000
"""Samples of a stage that are looked at."""


@dataclass(frozen=True, kw_only=True)
class GivenLengths:
    """Of a stage, where its data is not there."""

    samples: Nothing[Whole] = 0
    """Of the whole stage, all its passes; 0: as many as the configuration's steps take."""
    seconds: Nothing[tuple[NotNegative, ...]] = ()
    """Of clips, each as common as the others; 0: a sample without one."""
    tokens: Nothing[tuple[Count, ...]] = ()
    """Of texts, each as common as the others."""
    supervised: Nothing[Fraction] = 0.25
    """Part of the tokens with a label."""
    clips: Nothing[Count] = 1
    """Of a sample that has any."""
    source: Nothing[str] = ""


@dataclass(frozen=True, kw_only=True)
class LengthsFile:
    stages: Nothing[dict[str, GivenLengths]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)  # its own identity: what is made of them is remembered
class Lengths:
    samples: tuple[Sample, ...]
    """Each as common as the others."""
    total: int
    """Samples of the whole stage; 0: as many as its steps take, and unknown where it asks for passes."""
    told: str
    """Where this comes from."""
    longest: bool = False
    """Nothing is known: every sample is as long as the stage lets it be."""


def read_lengths(name: str) -> Mapping[str, GivenLengths]:
    """A file of ``configs/lengths``, or the path of another one.

    Raises:
        ConfigError: there is none of that name.
    """
    folder = CONFIGS / "lengths"
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ConfigError(f"--lengths {name}: no such file{suggestion(name, known)}")
    return read_values(LengthsFile, path).stages


def lengths_of(config: Config, name: str, given: Mapping[str, GivenLengths]) -> Lengths:
    """Of stage ``name``; what is given comes before the data."""
    stage = config.curriculum[name]
    if name in given:
        return _given(config, stage, given[name])
    try:
        return _from_data(config, stage)
    except (ConfigError, KeyError, OSError, ValueError):
        pass  # the data or its tokenizer is not there, or not even named
    text = stage.questions_per_sample * stage.max_text_tokens
    sample = Sample(windows=(stage.max_windows,), tokens=text, segments=stage.questions_per_sample)
    return Lengths(samples=(sample,), total=0, told="every sample as long as the stage allows", longest=True)


def _given(config: Config, stage: StageConfig, given: GivenLengths) -> Lengths:
    windows = [_windows(config, stage, seconds) for seconds in given.seconds] or [stage.max_windows]
    tokens = [min(count, stage.max_text_tokens) for count in given.tokens] or [stage.max_text_tokens]
    samples = tuple(
        Sample(
            windows=(count,) * given.clips if count else (),
            tokens=text * stage.questions_per_sample,
            segments=stage.questions_per_sample,
            supervised=given.supervised,
        )
        for count in windows
        for text in tokens
    )
    return Lengths(samples=samples, total=given.samples, told=given.source or "as given")


def _windows(config: Config, stage: StageConfig, seconds: float) -> int:
    return config.model.front_end.windows_of(seconds, stage.max_windows) if seconds else 0


def _from_data(config: Config, stage: StageConfig) -> Lengths:
    root, datasets = DataRoot(config.data.root), config.data.datasets
    rows = {name: open_rows(root, datasets[name].manifest) for name in stage.blend}
    sizes = {name: len(found) for name, found in rows.items()}
    sampler = BlendSampler(sizes, stage.blend, config.seed)
    tokenizer = Tokenizer.load(config.data.tokenizer) if stage.objective == "answer" else None
    draw, found = random.Random(0), []
    total = round(stage.passes * sum(weight * sizes[name] for name, weight in stage.blend.items()))
    for index in draw.sample(range(10 * LOOKED_AT), LOOKED_AT):
        drawn = sampler.draw(index)
        try:
            row = rows[drawn.dataset][drawn.row]
            windows = tuple(_windows(config, stage, clip.duration) for clip in row.clips)
            if tokenizer is None:
                found.append(Sample(windows=windows, tokens=0))
                continue
            text = render(row, tokenizer, stage.max_text_tokens, style=STYLES[config.data.text_style])
        except (RowError, UnknownWords):
            continue
        asked = text.segments[: stage.questions_per_sample]
        length = sum(map(len, asked))
        labels = sum(_labels(ids, tokenizer) for ids in asked)
        found.append(
            Sample(windows=windows, tokens=length, segments=len(asked), supervised=labels / max(1, length))
        )
    if not found:
        raise ValueError("no row can be used")
    told = f"{len(found):,} samples drawn from the {sum(sizes.values()):,} rows of {', '.join(sizes)}"
    return Lengths(samples=tuple(found), total=total, told=told)


def _labels(ids: list[int], tokenizer: Tokenizer) -> int:
    labels = answer_labels(np.array([ids]), np.zeros((1, len(ids)), int), tokenizer)
    return int(np.count_nonzero(labels >= 0))
