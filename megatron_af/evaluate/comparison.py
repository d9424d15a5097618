"""Two measurements of a benchmark side by side: what changed, whether it could be chance, and which samples flipped.

    compared = compare(Path("runs/b/finetune"), Path("runs/a/finetune"), "esc50")
    write(Path("compared.html"), comparison_page([compared], DataRoot("data")))

Questions are paired by their ids, and are others where their right answers are others; those that only one measurement
has are counted and left out. The interval is of the mean gain over recordings, the p-value that of a permutation test
of its sign.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from math import isnan
from pathlib import Path

from rich.table import Table

from dali_pipes.waves import AudioError, read_wave
from megatron_af.data.shards import source_of
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.evaluate.answered import Answered, read_answered, read_scores
from megatron_af.evaluate.intervals import paired
from megatron_af.web_page import page, sound

PLAYED_RATE, PLAYED_SECONDS = 16_000, 20.0
COLUMNS = ("metric", "before", "now", "gain", "95%", "p", "unparseable")
SHOWN = 40
"""Flipped samples of each way on a page."""


class NotComparable(ValueError):
    """Two folders that do not hold results of one benchmark; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of both."""

    metric: str
    before: float
    now: float
    interval: tuple[float, float]
    """95% of the gain."""
    chance: float
    """How likely a gain as large is where there is none."""
    unparseable: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A question whose answer was right in one measurement alone."""

    before: Answered
    now: Answered
    won: bool


@dataclass(frozen=True, kw_only=True)
class Compared:
    suite: str
    folders: tuple[Path, Path]
    lines: list[Line]
    flips: list[Flip]
    judged_by: str
    """Metric that says what flipped."""
    unpaired: int


def compare(now: Path, before: Path, suite: str, metric: str = "") -> Compared:
    """
    Args:
        now, before: folders with ``suite-NAME.parquet``.
        metric: that says what flipped; default: the first that both have.

    Raises:
        NotComparable: one of them has no such results, or they share no question or metric.
    """
    files = [folder / f"suite-{suite}.parquet" for folder in (now, before)]
    for file in files:
        if not file.is_file():
            raise NotComparable(f"{file} is not there: measure with tools/evaluate.py --suite {suite}")
    asked, asked_before = ({one.id: one for one in read_answered(file)} for file in files)
    scores, scores_before = (read_scores(file) for file in files)
    shared = [
        name
        for name, one in asked.items()
        if name in asked_before and set(one.references) == set(asked_before[name].references)
    ]
    metrics = [name for name in scores if name in scores_before]
    if not shared or not metrics:
        raise NotComparable(f"{files[0]} and {files[1]} share {len(shared)} questions and {len(metrics)} metrics")
    if metric and metric not in metrics:
        raise NotComparable(f"{files[0]} and {files[1]} do not both have {metric}; they have {', '.join(metrics)}")
    metric = metric or metrics[0]
    groups = [asked[name].group for name in shared]
    lines = []
    for name in metrics:
        ours, theirs = ([of[name][i] for i in shared] for of in (scores, scores_before))
        pairs = [(a or 0.0, b or 0.0) for a, b in zip(ours, theirs, strict=True)]
        known = [i for i, pair in enumerate(pairs) if not any(map(isnan, pair))]  # what one of them knows says nothing
        if not known:
            continue
        low, high, chance = paired([pairs[i][0] - pairs[i][1] for i in known], [groups[i] for i in known])
        lines.append(
            Line(
                metric=name,
                before=sum(pairs[i][1] for i in known) / len(known),
                now=sum(pairs[i][0] for i in known) / len(known),
                interval=(low, high),
                chance=chance,
                unparseable=(_unparseable(ours), _unparseable(theirs)),
            )
        )
    flips = [
        Flip(before=asked_before[name], now=asked[name], won=gain > 0)
        for name in shared
        if (gain := (scores[metric][name] or 0.0) - (scores_before[metric][name] or 0.0)) and not isnan(gain)
    ]
    unpaired = len(asked) + len(asked_before) - 2 * len(shared)
    return Compared(
        suite=suite, folders=(now, before), lines=lines, flips=flips, judged_by=metric, unpaired=unpaired
    )


def _unparseable(scores: Sequence[float | None]) -> int:
    return sum(one is None or isnan(one) for one in scores)


def shared_suites(now: Path, before: Path) -> list[str]:
    """Benchmarks that both folders have results of."""
    names = [{file.stem.partition("-")[2] for file in folder.glob("suite-*.parquet")} for folder in (now, before)]
    return sorted(names[0] & names[1])


def comparison_table(one: Compared) -> Table:
    """For the terminal."""
    grid = Table(title=f"{one.suite}: {one.folders[0]} against {one.folders[1]}", title_justify="left")
    for name in COLUMNS:
        grid.add_column(name, justify="left" if name == "metric" else "right")
    for line in one.lines:
        grid.add_row(*_cells(line))
    won = sum(flip.won for flip in one.flips)
    grid.caption = f"by {one.judged_by}: {won} won, {len(one.flips) - won} lost; left out: {one.unpaired}"
    return grid


def comparison_page(compared: Sequence[Compared], root: DataRoot) -> str:
    """One HTML file with the sounds of what flipped inside."""
    parts = ["<h1>Side by side</h1>"]
    for one in compared:
        now, before = (escape(str(folder)) for folder in one.folders)
        parts.append(f"<h2>{escape(one.suite)}</h2><p class=faint>now: {now}<br>before: {before}</p>")
        if one.unpaired:
            parts.append(f"<p>{one.unpaired:,} questions stand in one of the two alone and are left out.</p>")
        parts.append(_table(one))
        for won, title in ((True, "right now, wrong before"), (False, "wrong now, right before")):
            flips = [flip for flip in one.flips if flip.won is won]
            parts.append(f"<h3>{title}: {len(flips):,}, by {escape(one.judged_by)}</h3>")
            parts += [_flip(flip, root) for flip in flips[:SHOWN]]
            if len(flips) > SHOWN:
                parts.append(f"<p class=faint>and {len(flips) - SHOWN:,} more</p>")
    return page("side by side", parts)


def _table(one: Compared) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = ["".join(f"<td>{escape(cell)}</td>" for cell in _cells(line)) for line in one.lines]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.metric,
        f"{line.before:.4g}",
        f"{line.now:.4g}",
        f"{line.now - line.before:+.4g}",
        f"{line.interval[0]:+.4g} to {line.interval[1]:+.4g}",
        f"{line.chance:.3g}",
        f"{line.unparseable[1]} → {line.unparseable[0]}",
    )


def _flip(flip: Flip, root: DataRoot) -> str:
    now, before = flip.now, flip.before
    told = [
        ("asked", now.prompt),
        ("right", " / ".join(now.references)),
        ("before", before.answers[0] or "(nothing)"),
        ("now", now.answers[0] or "(nothing)"),
    ]
    text = "\n".join(f"{name:<7} {value}" for name, value in told)
    return f'{_player(now, root)}<div class="text">{escape(text)}</div>'


def _player(one: Answered, root: DataRoot) -> str:
    with suppress(AudioError, StorageError, OSError):
        seconds = min(one.duration, PLAYED_SECONDS)
        wave_T = read_wave(source_of(root, one.clip), start=one.start, duration=seconds, sample_rate=PLAYED_RATE)
        return sound(wave_T, PLAYED_RATE, "MP3")
    return f"<p class=faint>{escape(one.audio)} cannot be read</p>"
