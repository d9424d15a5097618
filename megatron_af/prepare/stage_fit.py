"""Does each data set belong into the stages that blend it? A linter: it warns and says why, and stops nothing.

    for warning in stage_fit(config): …                            # by what data.datasets.NAME.merits says
    for warning in claims(config.data.datasets[name].merits, statistics): …    # where the rows say otherwise

The five criteria are Audio Flamingo 1's (arXiv 2402.01831, "training"): poor quality, little diversity and texts that a
model wrote are for pre-training, though good subsets of the latter may be fine-tuned on; what stands in both stages is
very large; rows behind examples come in fine-tuning. Pre-training is a stage whose transformation layers start fresh,
fine-tuning one that takes them over.
"""

from collections import defaultdict
from collections.abc import Iterator

from megatron_af.config import Config, DatasetConfig, MeritsConfig
from megatron_af.data.shards import open_rows, rows_file
from megatron_af.data.storage import DataRoot
from megatron_af.prepare.statistics import Statistics, measure
from megatron_af.text.tokenizer import Tokenizer

VERY_LARGE = 40_000
"""Rows: ours, below the smallest set that Audio Flamingo 1 uses in both stages."""
BIASED = 2 / 3
"""Of all answers are the commonest one: ours, so that "yes" and "no" may be a little uneven."""


def lint(config: Config) -> list[str]:
    """Every warning, with those about rows of the data sets that are there, and a line that sums up."""
    warnings, judged, root = list(stage_fit(config)), 0, DataRoot(config.data.root)
    for name, dataset in config.data.datasets.items():
        if dataset.merits == MeritsConfig():
            continue
        judged += 1
        if root.exists(rows_file(dataset.manifest)):
            rows, tokenizer = open_rows(root, dataset.manifest), Tokenizer.load(config.data.tokenizer)
            warnings += claims(dataset.merits, measure(rows, config, tokenizer, name=name))
    summary = f"{len(warnings)} warnings; {judged} of {len(config.data.datasets)} data sets have merits"
    return [*(f"- {warning}" for warning in warnings), summary]


def stage_fit(config: Config) -> Iterator[str]:
    """A sentence for each data set that stands in a stage where the criteria do not want it."""
    datasets = config.data.datasets
    first, tuned = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for name, stage in config.curriculum.items():
        if stage.objective != "answer":
            continue
        fine_tuning = bool({"all", "transform"} & stage.entry.keys())
        for dataset in filter(datasets.__contains__, stage.blend):
            where, settings = f"curriculum.{name}.blend.{dataset}", datasets[dataset]
            yield from _fine_tuned(where, dataset, settings.merits) if fine_tuning else _pre_trained(where, settings)
            if not _behind_examples(settings):
                (tuned if fine_tuning else first)[_rows_of(settings)].append(dataset)
    for rows in first.keys() & tuned.keys():
        dataset, again = first[rows][0], tuned[rows][0]
        if datasets[dataset].merits.size == "small":
            yield (
                f"data.datasets.{dataset}.merits.size = small: it is pre-trained on, and as {again} fine-tuned on, "
                "which only very large sets bear without being learnt by heart; leave one out"
            )


def _fine_tuned(where: str, dataset: str, merits: MeritsConfig) -> Iterator[str]:
    key = f"data.datasets.{dataset}.merits"
    if merits.quality == "low":
        yield f"{where}: {key}.quality = low; fine-tuning keeps what it sees, pre-train on it instead"
    if merits.diversity == "low":
        yield f"{where}: {key}.diversity = low; its habits would become the model's, pre-train on it instead"
    if merits.source == "model" and merits.quality != "high":
        yield (
            f"{where}: {key}.source = model; texts that a model wrote are for pre-training, unless {key}.quality = "
            "high says that this is a good subset"
        )


def _pre_trained(where: str, settings: DatasetConfig) -> Iterator[str]:
    if _behind_examples(settings):
        yield f"{where}: its rows stand behind examples; those come in fine-tuning, blend it into a later stage"


def _behind_examples(settings: DatasetConfig) -> bool:
    origin = settings.origin
    return settings.neighbours is not None or (origin is not None and "interleaved" in origin.path)


def _rows_of(settings: DatasetConfig) -> str:
    """What tells two names of the same rows."""
    return settings.origin.path if settings.origin else settings.source or settings.manifest


def claims(merits: MeritsConfig, statistics: Statistics) -> Iterator[str]:
    """Where the rows say otherwise than ``merits``."""
    key = f"data.datasets.{statistics.name}.merits"
    if merits.size == "very_large" and statistics.rows < VERY_LARGE:
        yield f"{key}.size = very_large: it has {statistics.rows:,} rows, below {VERY_LARGE:,}; set it to small"
    if merits.size == "small" and statistics.rows >= VERY_LARGE:
        yield f"{key}.size = small: it has {statistics.rows:,} rows; set it to very_large"
    if merits.diversity == "high" and statistics.answers:
        answer, count = statistics.answers.most_common(1)[0]
        part = count / statistics.answers.total()
        if part > BIASED:
            yield f"{key}.diversity = high: {part:.0%} of its answers are {answer!r}; set it to low"
    if merits.quality == "high" and statistics.problems:
        yield (
            f"{key}.quality = high: {statistics.problems.total():,} of {statistics.looked_at:,} rows cannot be used "
            f"({statistics.problems.most_common(1)[0][0]}); mend them or set it to low"
        )
