"""What a data set holds, in numbers: durations, windows, text lengths, labels, skills.

    statistics = measure(rows, config, tokenizer)       # tools/prepare_data.py stats
    console.print(*tables(statistics))

Counting looks at every row up to a limit, above it at rows evenly spaced over the data set.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table

from megatron_af.config import Config
from megatron_af.data.rows import Row, RowError
from megatron_af.data.templates import STYLES, TooLong, UnknownWords, answer_labels, render
from megatron_af.text.tokenizer import Tokenizer

LIMIT = 20_000
UNCUT = 1 << 30
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(kw_only=True)
class Statistics:
    """Of the rows that were looked at."""

    name: str
    rows: int
    """In the data set."""
    looked_at: int
    seconds: list[float] = field(default_factory=list)
    """Of each clip."""
    windows: list[int] = field(default_factory=list)
    """Of each clip, uncut."""
    tokens: list[int] = field(default_factory=list)
    """Of each segment of text."""
    supervised: list[int] = field(default_factory=list)
    """Tokens of each segment that have a label."""
    answers: Counter[str] = field(default_factory=Counter)
    skills: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    templates: Counter[str] = field(default_factory=Counter)
    text_only: int = 0
    captions: int = 0
    options: int = 0
    """Questions that name all allowed answers."""
    too_long: Counter[str] = field(default_factory=Counter)
    """Stage that reads the data set -> questions that fit into none of its text rows: it leaves them out."""
    shortened: Counter[str] = field(default_factory=Counter)
    """Stage -> rows that lose their oldest examples or turns there."""
    problems: Counter[str] = field(default_factory=Counter)
    """What was wrong with rows that cannot be read."""

    @property
    def hours(self) -> float:
        """Of audio in the whole data set, scaled up from the rows that were looked at."""
        return sum(self.seconds) / 3600 * self.rows / max(1, self.looked_at)


def measure(rows: Sequence[Row], config: Config, tokenizer: Tokenizer, *, name: str, limit: int = LIMIT) -> Statistics:
    """Looks at up to ``limit`` rows; text is counted in tokens as training would write it, uncut."""
    places = range(len(rows)) if len(rows) <= limit else np.linspace(0, len(rows) - 1, limit).astype(int).tolist()
    found = Statistics(name=name, rows=len(rows), looked_at=len(places))
    front_end, style = config.model.front_end, STYLES[config.data.text_style]
    readers = {key: stage for key, stage in config.curriculum.items() if name in (*stage.blend, *stage.evaluation)}
    limits = {key: stage.max_text_tokens for key, stage in readers.items() if stage.objective == "answer"}
    for place in places:
        try:
            row = rows[place]
        except RowError as error:
            found.problems[str(error)] += 1
            continue
        found.templates[row.template] += 1
        found.tasks[row.task or "-"] += 1
        found.text_only += not row.clips
        found.captions += len(row.captions)
        for clip in row.clips:
            samples = round(clip.duration * front_end.sample_rate)
            found.seconds.append(clip.duration)
            found.windows.append(front_end.num_windows(samples, max(1, samples)))
        for question in row.questions:
            found.answers[question.output.strip().lower()] += 1
            found.skills[question.skill or "-"] += 1
            found.options += bool(question.options)
        try:
            segments = render(row, tokenizer, UNCUT, style=style).segments if row.questions else ()
        except UnknownWords as error:
            found.problems.update(f"answers with '{word}', which the tokenizer lacks" for word in error.words)
            continue
        for stage, limit in limits.items():
            if any(len(ids) > limit for ids in segments):
                try:
                    text = render(row, tokenizer, limit, style=style)
                    found.too_long[stage] += text.too_long
                    found.shortened[stage] += bool(text.shortened)
                except TooLong as error:
                    found.too_long[stage] += error.questions
        for ids in segments:
            found.tokens.append(len(ids))
            labels = answer_labels(np.array([ids]), np.zeros((1, len(ids)), int), tokenizer)
            found.supervised.append(int((labels >= 0).sum()))
    return found


def tables(statistics: Statistics, most: int = 12) -> list[Table]:
    """For the terminal: an overview, the spread of lengths, and the commonest answers, skills and tasks."""
    s = statistics
    overview = Table(
        title=f"{s.name}: {s.rows:,} rows" + ("" if s.looked_at == s.rows else f", {s.looked_at:,} looked at")
    )
    for column in ("audio", "clips", "text only", "captions", "templates", "unreadable rows"):
        overview.add_column(column)
    templates = ", ".join(f"{name} {n:,}" for name, n in s.templates.most_common())
    overview.add_row(
        f"{s.hours:,.1f} h",
        f"{len(s.seconds):,}",
        f"{s.text_only:,}",
        f"{s.captions:,}",
        templates,
        f"{s.problems.total():,}",
    )
    spread = Table(title="lengths")
    spread.add_column("")
    for quantile in QUANTILES:
        spread.add_column({0.0: "least", 0.5: "median", 1.0: "most"}.get(quantile, f"{quantile:.0%}"), justify="right")
    lengths: dict[str, Sequence[float]] = {
        "clip (s)": s.seconds,
        "clip (windows)": s.windows,
        "text (tokens)": s.tokens,
        "supervised (tokens)": s.supervised,
    }
    for label, values in lengths.items():
        if values:
            spread.add_row(label, *(f"{v:,.4g}" for v in np.quantile(values, QUANTILES)))
    out = [overview, spread]
    if stages := sorted(stage for stage in s.too_long | s.shortened if s.too_long[stage] or s.shortened[stage]):
        long = Table("stage", "questions left out", "rows without their oldest part", title="above max_text_tokens")
        for stage in stages:
            long.add_row(stage, f"{s.too_long[stage]:,}", f"{s.shortened[stage]:,}")
        out.append(long)
    counters = {"answers": s.answers, "skills": s.skills, "tasks": s.tasks, "problems": s.problems}
    for title, counter in counters.items():
        if counter and set(counter) != {"-"}:
            table = Table("what", "how often", "part", title=f"{title}: {len(counter):,} different")
            for what, count in counter.most_common(most):
                table.add_row(
                    what if len(what) <= 60 else what[:59] + "…", f"{count:,}", f"{count / counter.total():.1%}"
                )
            out.append(table)
    return out
