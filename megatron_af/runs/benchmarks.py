"""A benchmark is one YAML file: where its rows come from, how they are asked, how answers are measured, what is known.

    benchmark = load_benchmark("esc50")            # configs/benchmarks/esc50.yaml, or a path of one's own
    problems = list(benchmark.problems("esc50"))

    title: ESC-50
    source: {format: csv, path: esc50/meta/esc50.csv, audio: esc50/audio, columns: {audio: filename, label: category}}
    wordings: ["{question}", "which sound is this?\\n{labels}"]
    metrics: [exact, nearest]
    published: [{model: AF2 3B, metric: nearest, value: 83.9, source: "arXiv 2503.03983, table 1"}]

This is what checks and digests must know of one; ``megatron_af.evaluate.suites`` asks.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_af.config import ConfigError, ImportConfig
from megatron_af.config.components import UnknownComponent, component
from megatron_af.config.errors import suggestion
from megatron_af.config.loading import CONFIGS, read_values

BENCHMARKS = CONFIGS / "benchmarks"
METRICS = {
    "exact": "megatron_af.evaluate.metrics.choices:Exact",
    "match": "megatron_af.evaluate.metrics.choices:Match",
    "letter": "megatron_af.evaluate.metrics.choices:Letter",
    "likelihood": "megatron_af.evaluate.metrics.choices:Likelihood",
    "nearest": "megatron_af.evaluate.metrics.nearest:Nearest",
    "f1_approx": "megatron_af.evaluate.metrics.nearest:ApproximateF1",
    "mean_average_precision": "megatron_af.evaluate.metrics.nearest:MeanAveragePrecision",
    "bleu": "megatron_af.evaluate.metrics.captions:Bleu",
    "rouge_l": "megatron_af.evaluate.metrics.captions:RougeL",
    "meteor": "megatron_af.evaluate.metrics.captions:Meteor",
    "cider": "megatron_af.evaluate.metrics.captions:Cider",
    "spider": "megatron_af.evaluate.metrics.captions:Spider",
    "fense": "megatron_af.evaluate.metrics.captions:Fense",
    "judge": "megatron_af.evaluate.metrics.judge:Judged",
}
METRIC = "megatron_af.evaluate.metrics.base:Metric"
PROBES = ("exchanged", "silent", "shifted", "options", "cited", "uncited")
"""What may be changed of the questions to see whether answers follow (``megatron_af.evaluate.probes``)."""
PLACES = ("question", "options", "labels")
"""What a wording may hold, in braces."""

Cleaning = Literal["first_line", "no_full_stop", "number_words"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number that somebody else reached."""

    model: str
    metric: str
    """As it stands in the report, such as ``cider``, ``skills/sound/match`` or ``zero_shot/accuracy``."""
    value: float
    """In the report's units: percent for what counts right answers, and captions' metrics as their papers give them."""
    source: str
    """Paper and table."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is asked of a model and how it is measured."""

    title: str
    source: ImportConfig
    """Its published layout, as ``data.datasets.NAME.origin`` has it; questions with the same prompt about the same
    recording are one question with several references."""
    options: tuple[str, ...] = ()
    """What may be answered, where the rows do not say it."""
    shuffle_options: bool = False
    """Put each question's options into an order of its own, where the layout has the right one first."""
    wordings: tuple[str, ...] = ("{question}",)
    """How it is asked: ``{question}`` is the row's prompt, ``{options}`` its options as ``(A) rain (B) hail``,
    ``{labels}`` the same as Audio Flamingo 1 lists them. The first counts; the others say how much the words matter."""
    clean: tuple[Cleaning, ...] = ()
    """What is done to an answer before it is measured: its first line alone, no full stop at its end, numbers that are
    written out as digits (in references as well)."""
    metrics: tuple[str, ...] = ()
    """Names, or ``module:Class`` of one's own (``megatron_af/evaluate/metrics/base.py``)."""
    probes: tuple[Literal["exchanged", "silent", "shifted", "options", "cited", "uncited"], ...] = ()
    """Asked again in the first wording: about another recording, silence, or the recording with its second half first,
    with the options in other places, or about the recording without the span that the answer's cross-attention names,
    or without another span of that length."""
    published: tuple[Published, ...] = ()

    def problems(self, name: str) -> Iterator[str]:
        """What keeps it from being measured, each with its key and a fix."""
        if not self.wordings:
            yield f"{name}: wordings is empty: write at least '{{question}}'"
        for place, wording in enumerate(self.wordings):
            for inside in re.findall(r"{(\w*)}", wording):
                if inside not in PLACES:
                    hint = suggestion(inside, PLACES)
                    yield f"{name}: wordings[{place}] has {{{inside}}}, which stands for nothing{hint}"
        if not self.metrics:
            yield f"{name}: metrics is empty: name some of {', '.join(METRICS)}"
        for metric in self.metrics:
            try:
                component(metric, METRICS, METRIC)
            except UnknownComponent as error:
                yield f"{name}: metrics: {error}"
        if twice := [option for option in dict.fromkeys(self.options) if self.options.count(option) > 1]:
            yield f"{name}: options: {', '.join(twice)} stands there more than once"


def load_benchmark(name: str) -> Benchmark:
    """
    Args:
        name: of a file of ``configs/benchmarks``, or the path of a YAML file.

    Raises:
        ConfigError: there is none, or it cannot be used; with every problem.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else BENCHMARKS / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no benchmark {name}{suggestion(name, shipped())}")
    benchmark = read_values(Benchmark, path)
    if problems := list(benchmark.problems(path.stem)):
        raise ConfigError(f"{path} cannot be used", problems)
    return benchmark


def shipped() -> list[str]:
    return sorted(path.stem for path in BENCHMARKS.glob("*.yaml"))


def name_of(benchmark: str) -> str:
    """What a benchmark's results are called: the name of its file."""
    return Path(benchmark).stem


def suite_problems(names: Sequence[str], key: str) -> Iterator[str]:
    """What keeps a stage from being measured on them; ``key``: where they are named."""
    for name in names:
        try:
            load_benchmark(name)
        except ConfigError as error:
            yield from (f"{key}: {problem}" for problem in error.problems or (str(error),))
    called = [name_of(name) for name in names]
    for name in dict.fromkeys(called):
        if called.count(name) > 1:
            yield f"{key}: two benchmarks are called {name}, and so would their results be; rename a file"
