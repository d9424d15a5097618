"""A word-level tokenizer of the words that a run's rows are written in.

    made = make_tokenizer(config)               # writes data.tokenizer; tools/make_tokenizer.py

What is there already is extended: its words keep their ids, so what was trained with it keeps its meaning. Stages that
were trained with the shorter one are trained anew, for a run's identity holds the tokenizer's digest
(``runs/identity.py``); to keep their weights, name their checkpoint in a stage's ``entry``.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from megatron_af.config import Config, ConfigError
from megatron_af.data.rows import Manifest, Row, RowError, Span
from megatron_af.data.shards import open_rows, rows_file
from megatron_af.data.storage import DataRoot
from megatron_af.data.templates import CLASS_PHRASES, FIXED_TEXTS
from megatron_af.files import write
from megatron_af.text.tokenizer import Tokenizer, read_tokenizer, stated_eos
from megatron_af.text.words import NoWords, build, extend


@dataclass(frozen=True, kw_only=True)
class Made:
    """What came of it."""

    file: Path
    new: list[str]
    """Words that were not there before, in their order."""
    tokens: int
    """Ids of the tokenizer, Audio Flamingo's added ones included."""
    words: int
    """Without these: what ``model.lm.vocab`` must not fall short of."""
    datasets: list[str]
    """Whose rows were read."""


def make_tokenizer(config: Config, start: Path | None = None) -> Made:
    """Writes ``data.tokenizer`` with every word of the rows that are there, unless it has them all.

    Args:
        start: a ``tokenizer.json`` or its folder to extend, where ``data.tokenizer`` does not exist yet.

    Raises:
        ConfigError: there are no rows, ``data.tokenizer`` is no file's name, or what is there takes no words.
    """
    file = tokenizer_file(config)
    begin = file if file.exists() else start
    if begin is not None and begin.is_dir():
        begin /= "tokenizer.json"
    root = DataRoot(config.data.root)
    found = {name: rows for name in config.data.datasets if (rows := _rows(root, config, name)) is not None}
    if not found:
        raise ConfigError(
            "no words", [f"data.datasets: none of {', '.join(config.data.datasets) or 'them'} has rows; import them"]
        )
    texts = (text for rows in found.values() for text in _texts(rows))
    try:
        base = read_tokenizer(begin) if begin else build(())
        base, new = extend(base, (*FIXED_TEXTS, *CLASS_PHRASES, *texts))
    except NoWords as why:
        raise ConfigError("no words can be added", [f"{begin}: {why}"]) from why
    text = base.to_str(pretty=True)
    try:
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(text), eos=stated_eos(file.parent))
    except ValueError as why:  # before it is written: what is there would be extended the next time
        raise ConfigError("no tokenizer can be made", [f"{begin}: {why}"]) from why
    if new or begin != file:
        write(file, text)
    words = tokenizer.first_added_id
    return Made(file=file, new=new, tokens=len(tokenizer), words=words, datasets=list(found))


def tokenizer_file(config: Config) -> Path:
    """The file that ``data.tokenizer`` means. Raises ``ConfigError`` where it can mean none."""
    place = Path(config.data.tokenizer)
    if place.suffix == ".json":
        return place
    if place.is_dir():
        return place / "tokenizer.json"
    raise ConfigError(
        "no place for a tokenizer", [f"data.tokenizer = {config.data.tokenizer}: name a file that ends with .json"]
    )


def texts_of(row: Row) -> Iterator[str]:
    """Everything that is said in a row, and the words around it."""
    for question in row.questions:
        yield from (question.prompt, question.output, *question.options)
    parts: tuple[Row | Span, ...] = (row, *row.spans)
    for part in parts:
        yield from (*part.captions, *part.negatives)
    yield row.task


def _rows(root: DataRoot, config: Config, name: str) -> Sequence[Row] | None:
    """Rows of a data set, imported or prepared; None where there are none yet."""
    dataset = config.data.datasets[name]
    if dataset.source and root.exists(dataset.source):
        return Manifest(root.fetch(dataset.source))
    return open_rows(root, dataset.manifest) if root.exists(rows_file(dataset.manifest)) else None


def _texts(rows: Sequence[Row]) -> Iterator[str]:
    for place in range(len(rows)):
        with suppress(RowError):  # preparation names it
            yield from texts_of(rows[place])
