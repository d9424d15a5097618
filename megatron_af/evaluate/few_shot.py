"""An evaluation with examples: each question behind the training rows that sound most like what it is about.

    problems = list(few_shot_problems(config, "clotho", [0, 4]))
    for count, shown in few_shot_sets(config, "clotho", sets, [0, 4]).items(): …         # a process group exists
    print(few_shot_table({0: summaries, 4: summaries}, "clotho"))

The examples of fewer shots are the nearest of those of more. Numbers with and without examples are about the same
questions, one for one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.table import Table

from megatron_af.config import Config
from megatron_af.config.errors import suggestion
from megatron_af.data.rows import Row
from megatron_af.data.templates import RowText, TooLong
from megatron_af.evaluate.hearing import questions_of
from megatron_af.foreign import ForeignError
from megatron_af.retrieval.index import why_stale
from megatron_af.retrieval.interleave import behind

type Sets = Mapping[str, Sequence[Row]]
"""Rows of each data set that is asked about."""


def few_shot_problems(config: Config, source: str, shots: Sequence[int]) -> Iterator[str]:
    """Why no examples can be shown: flags, keys and fixes."""
    if min(shots) < 0:
        yield f"--shots {min(shots)}: give a number of examples, 0 or more"
        return
    if not any(shots):
        if source:
            yield f"--from {source}: there is nothing to take from it, give --shots above 0"
        return
    if config.stage in config.curriculum and config.curriculum[config.stage].objective == "contrastive":
        yield f"--shots {max(shots)}: stage {config.stage} is contrastive and reads no examples; leave --shots out"
    elif not source:
        indexed = ", ".join(config.retrieval.datasets) or "a training split of data.datasets"
        yield f"--shots {max(shots)} needs --from DATASET to take examples from: name {indexed}"
    elif source not in config.data.datasets:
        yield f"--from {source}: not in data.datasets{suggestion(source, list(config.data.datasets))}"
    elif not config.retrieval.indexes:
        yield (
            "retrieval.stage is empty: name the contrastive stage whose embedding says what sounds alike, or a folder "
            "in retrieval.encoder"
        )
    else:
        try:
            stale = why_stale(config, source)
        except (FileNotFoundError, ForeignError) as error:
            stale = str(error)
        if stale:
            yield f"--from {source}: {stale}; run tools/build_retrieval.py index"


def few_shot_sets(config: Config, source: str, sets: Sets, shots: Sequence[int]) -> dict[int, Sets]:
    """For each number of shots, what is asked of each set; a collective.

    Raises:
        ValueError: more shots than there are examples, or a row that cannot stand behind any.
    """
    if not any(shots):
        return dict.fromkeys(shots, sets)
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.retrieval.retriever import Retriever

    asked = {name: questions_of(rows) for name, rows in sets.items()}
    retriever = Retriever(config, source)
    found = {name: retriever.examples(rows, max(shots)) for name, rows in asked.items()}
    retriever.close()

    def shown(name: str, count: int) -> list[Row]:
        return [behind(row, nearest[:count]) for row, nearest in zip(asked[name], found[name], strict=True)]

    return {count: {name: shown(name, count) for name in sets} if count else sets for count in shots}


def behind_examples(config: Config, source: str, count: int, rows: Sequence[Row]) -> Sequence[Row]:
    """Rows that ask one question each, behind ``count`` examples; a collective. Raises as :func:`few_shot_sets`."""
    return few_shot_sets(config, source, {"rows": rows}, [count])[count]["rows"] if rows else rows


def cut_short(prompt: Callable[[Row], RowText], rows: Sequence[Row]) -> int:
    """Questions for whose examples there is not enough room (``max_text_tokens``): the farthest are left out."""
    number = 0
    for row in rows:
        with suppress(TooLong):  # counted by itself
            number += prompt(row).shortened > 0
    return number


def few_shot_table(summaries: Mapping[int, Mapping[str, Any]], source: str) -> Table:
    """Accuracy with the right audio, and above that with another's, by set and number of shots."""
    grid = Table(title=f"examples from {source or 'nowhere'}", title_justify="left")
    grid.add_column("set")
    for shots in summaries:
        grid.add_column(f"{shots} shots", justify="right")
    for name in next(iter(summaries.values())):
        scores = [of_set[name]["overall"] for of_set in summaries.values()]
        grid.add_row(name, *(f"{score['audio']:.1f}% ({score['gap']:+.1f})" for score in scores))
    cut = {shots: sum(s["overall"].get("cut_short", 0) for s in of_set.values()) for shots, of_set in summaries.items()}
    grid.caption = ", ".join(f"{shots} shots: {n} questions lost examples" for shots, n in cut.items() if n)
    return grid
