"""Where data comes from, how it is prepared, and which of it training reads."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from megatron_af.config.effects import Files, Nothing, Order
from megatron_af.config.ranges import Count, Fraction, NotNegative, Whole


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How ``tools/prepare_data.py prepare`` turns recordings into shards."""

    channels: Files[Literal["mix", "first"]] = "mix"
    """Average the channels, or take the first (what the reference does but for mp3)."""
    max_seconds: Files[NotNegative] = 0.0
    """Longer clips are cut; 0: to what the stage with the most windows can use."""
    rows_per_shard: Files[Count] = 512
    workers: Nothing[Whole] = 0
    """Processes; 0: one per core that this process may use."""
    max_bad_fraction: Nothing[Fraction] = 0.05
    """Import and preparation fail when a larger part of the rows cannot be used; what they wrote stays."""


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """A table with the meaning of each label's code."""

    path: Files[str]
    """CSV file relative to ``data.root``."""
    code: Files[str]
    """Column of the codes."""
    means: Files[str]
    """Column of what is said for them."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Where a data set comes from in somebody else's layout; ``tools/prepare_data.py import`` makes rows of it."""

    format: Files[
        Literal["audio_flamingo", "conversations", "csv", "json", "files", "labels", "webdataset", "rows"]
    ]
    """AF1's and AF2's JSON manifests; turns about recordings (AudioSkills, LongAudio, LLaMA-Factory, ms-swift); a
    table; JSON objects of one form (MMAU, MMAR, NSynth); files whose names say it (CREMA-D, RAVDESS); a folder per
    label; tar files; rows of ours whose clips may lack ``duration`` (docs/data.md)."""
    path: Files[str]
    """File or folder relative to ``data.root``; for ``webdataset`` a pattern such as ``shards/*.tar``."""
    audio: Files[str] = ""
    """Folder that the recordings' names are relative to, below ``data.root``."""
    columns: Files[dict[str, str]] = field(default_factory=dict)
    """For ``csv``, ``json`` and ``files``, what -> column: ``audio`` (or a pattern, ``{ytid}.wav``), ``id``, ``start``,
    ``end`` or ``duration`` (seconds), and of what is said any of ``output`` (which answers ``prompt``, one of
    ``options`` if these are named), ``label`` (chosen among all of the table; ``prompt`` as well where it is a question
    with the same few answers), ``labels`` (several at once), ``caption`` (several: ``caption_1,caption_2``) and
    ``class`` (what it counts as, unasked); ``skill`` is what evaluation reports by;
    ``values`` is a list that fills the prompt's ``<places>``."""
    where: Files[dict[str, str]] = field(default_factory=dict)
    """Column -> regular expression that its whole text must fit; other records are no part of the data set."""
    names: Files[tuple[str, ...]] = ()
    """Of the columns of a table that has no line with them."""
    apart: Files[dict[str, str]] = field(default_factory=dict)
    """Columns whose texts are records of their own -> what ``kind`` says of such a record; ``text`` is its text."""
    words: Files[dict[str, str]] = field(default_factory=dict)
    """Label as it stands there, such as a code -> what is said for it."""
    dictionary: DictionaryConfig | None = None
    """The same out of a published file; a label that it does not have is a bad row."""
    agreed: Files[bool] = False
    """Several people answered each prompt: one record is kept of those who all gave the same answer."""
    pattern: Files[str] = ""
    """For ``files``, the regular expression that a file's path below ``path`` fits whole; its named groups are columns,
    and ``name`` is the path."""
    prompt: Files[str] = ""
    """What outputs answer, or else labels, or else captions; empty: the papers' words."""
    task: Files[str] = ""
    """Task in words (``audio captioning``), for ``The task is …``."""


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """A data set made of another one's: each row behind the rows that sound most like it (AF1's few-shot samples)."""

    of: Files[str]
    """Data set of ``data.datasets``, a training split."""
    examples: Files[Count] = 7
    """Neighbours before the row itself (AF1: 7, or 3)."""
    names: Files[tuple[str, ...]] = ()
    """What answers are called in place of themselves, drawn for each row anew, equal answers alike: only the examples
    then tell what an answer is called (symbol tuning, arXiv 2305.08298). Rows with options keep theirs; empty: all
    do."""

    def problems(self, key: str) -> Iterator[str]:
        """What does not go together in it; ``key``: where it stands in the configuration."""
        if self.names and len(set(self.names)) <= self.examples:
            yield (
                f"{key}.names: a row of {self.examples} examples can have {self.examples + 1} different answers; got "
                f"{len(set(self.names))} different names"
            )


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """A data set that is a part of another one: of its recordings, so that no two parts share one."""

    of: Files[str]
    """Data set of ``data.datasets`` that is imported."""
    begin: Files[Fraction] = 0.0
    """Of each class's recordings, in an order that follows from what they hold; 0: from the first."""
    end: Files[Fraction] = 1.0
    """1: to the last. Parts that do not overlap share no recording."""

    def problems(self, key: str) -> Iterator[str]:
        """What does not go together in it; ``key``: where it stands in the configuration."""
        if self.begin >= self.end:
            yield f"{key}: nothing lies between begin = {self.begin} and end = {self.end}"


@dataclass(frozen=True, kw_only=True)
class MeritsConfig:
    """What decides which stages a data set belongs into, as judged by who adds it; empty: not judged. Nothing is
    trained by it: ``tools/prepare_data.py lint`` warns by it (``megatron_af.prepare.stage_fit``)."""

    quality: Nothing[Literal["", "low", "high"]] = ""
    """Of recordings, texts and labels; low: noisy audio, poor or wrong texts."""
    diversity: Nothing[Literal["", "low", "high"]] = ""
    """Low: much alike, or labels far from evenly spread."""
    source: Nothing[Literal["", "people", "model"]] = ""
    """Who wrote the texts."""
    size: Nothing[Literal["", "small", "very_large"]] = ""
    """Very large: enough for several stages."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    manifest: Order[str]
    """What training reads, relative to ``data.root``: a JSONL of rows (``megatron_af.data.rows.Row``) over
    recordings of any kind, or the folder of a prepared data set."""
    source: Files[str] = ""
    """JSONL that ``tools/prepare_data.py prepare`` turns into the prepared data set ``manifest``."""
    origin: ImportConfig | None = None
    """What ``tools/prepare_data.py import`` turns into ``source``."""
    part: PartConfig | None = None
    """What ``tools/prepare_data.py import`` takes out of another data set's rows into ``source``."""
    neighbours: NeighboursConfig | None = None
    """What ``tools/build_retrieval.py interleave`` writes to the JSONL ``manifest``."""
    task_prefix_probability: Order[Fraction] = 0.0
    """Part of the samples that begin with ``The task is …`` (AF1: 0.5 in most of pre-training, 1 in fine-tuning)."""
    merits: MeritsConfig = field(default_factory=MeritsConfig)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    root: Nothing[str] = "data"
    """Folder, or URL that fsspec knows; every path in a manifest is relative to it and never leaves it."""
    tokenizer: Order[str] = ""
    """Folder or ``tokenizer.json``, or a hub name."""
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    text_style: Order[Literal["af1", "af2"]] = "af2"
    """Which paper's templates write the text (``megatron_af.data.templates``)."""
    workers: Nothing[Whole] = 0
    """Threads that read recordings, and that DALI decodes with, per rank; 0: the cores that may be used shared
    among the machine's ranks."""
    feature_cache: Nothing[str] = ""
    """Folder for encoder features of stages with a frozen encoder; empty: encode every step."""
    max_replaced_fraction: Nothing[Fraction] = 0.01
    """A run stops when a larger part of its samples had to be replaced because they could not be read."""
