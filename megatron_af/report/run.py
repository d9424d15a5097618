"""The report of a run: one HTML file that plays its recordings, needs no network, and is logged to MLflow.

    file = write_report(Path("runs/demo"))           # runs/demo/report.html; tools/report.py
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from megatron_af.config import Config
from megatron_af.data.rows import Clip, Row
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.evaluate.classes import OTHER, class_rows
from megatron_af.evaluate.hearing import evaluation_rows
from megatron_af.files import write
from megatron_af.pipeline.report import clock, stamp
from megatron_af.report.charts import STYLE as CHARTS
from megatron_af.report.charts import Bar, bars, field_of, lines, matrix, shares
from megatron_af.report.found import RunFound, StageFound, intervals, read_run
from megatron_af.report.sounds import SCRIPT, Sounds
from megatron_af.report.sounds import STYLE as SOUNDS
from megatron_af.retrieval.index import NeighbourIndex
from megatron_af.runs.results import numbers_of
from megatron_af.tracking.runs import curriculum_spool, send_the_rest
from megatron_af.tracking.spool import Spool
from megatron_af.web_page import page

REPORT = "report.html"
RECORDINGS, QUESTIONS = 16, 8
"""Of a data set that are shown, and questions about each; wrong answers are drawn as often as right ones."""
QUERIES, NEIGHBOURS = 4, 4
STYLE = """
.card { border: 1px solid var(--line); border-radius: 8px; padding: .6em .9em; margin: .8em 0 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: .8em }
.cards .card { margin: 0 } .right { color: var(--good) } .wrong { color: var(--bad) }
.qa { border-top: 1px solid var(--line); padding: .35em 0; font-size: 14px } .qa:first-of-type { border: 0 }
.filter { margin-right: 1em; white-space: nowrap } body.hide-right .qa.ok, body.hide-wrong .qa.no { display: none }
"""
FILTER = """
for (const box of document.querySelectorAll('.filter input')) box.addEventListener('change', () =>
  document.body.classList.toggle('hide-' + box.value, !box.checked));
"""


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run and return its file: ``output``, or ``report.html`` in the run's folder.

    Where the run is followed in MLflow, it is logged to the curriculum's run as ``report/report.html``.

    Raises:
        FileNotFoundError: the folder holds no run with a trained stage.
    """
    run = read_run(folder)
    file = output or folder / REPORT
    with Sounds(run.config) as sounds:
        parts = list(_sections(run, sounds))
    write(file, page(f"{run.config.name}: report", parts, STYLE + CHARTS + SOUNDS, SCRIPT + FILTER))
    spool = curriculum_spool(run.config)
    if run.config.tracking.enabled and (spool / "run.json").is_file():
        Spool(spool).append("artifact", file=str(file.absolute()), to="report")
        send_the_rest(run.config)
    return file


def _sections(run: RunFound, sounds: Sounds) -> Iterator[str]:
    yield from _head(run)
    yield "<h2>Learning</h2>"
    yield from _learning(run)
    yield from _gates(run)
    for stage in run.stages:
        for name, scores in stage.scores.items():
            yield f"<h2>Answers of {escape(stage.name)} on {escape(name)}</h2>"
            yield from _scores(stage, name, scores)
    yield from _benchmarks(run)
    yield from _zero_shot(run)
    for stage in run.stages:
        rows = _rows_of(run.config, stage)
        yield from _looks(stage, rows, sounds)
        yield from _answers(stage, rows, sounds)
    yield from _neighbours(run, sounds)
    yield "<h2>Where the time goes</h2>"
    yield from _times(run)


def _head(run: RunFound) -> Iterator[str]:
    config, last = run.config, run.stages[-1]
    yield f"<h1>{escape(config.name)}</h1>"
    ended = [record.ended for record in run.steps if record.ended]
    when = f"; last step ended {stamp(max(ended))}" if ended else ""
    stages = ", ".join(f"{stage.name} ({stage.step:,} steps)" for stage in run.stages)
    yield f'<p class="faint">Stages: {escape(stages)}{when}.</p>'
    for name, scores in last.scores.items():
        overall = scores["overall"]
        gap = f", {overall['gap']} points" if "gap" in overall else ""
        interval = "{} to {}".format(*overall["interval"]) if "interval" in overall else ""
        yield (
            f"<p><b>{overall['audio']}%</b> of {overall['n']:,} questions of {escape(name)} are answered right with "
            f"the right audio, {overall['exchanged']}% with another recording's{gap}"
            f"{f' (95% interval {interval})' if interval else ''}; always the commonest answer: "
            f"{overall['majority']}%.</p>"
        )


def _learning(run: RunFound) -> Iterator[str]:
    charts = []
    for stage in run.stages:
        history = stage.history
        sets = history.names("loss/")
        lines_below = [name for name in ("watched/loss", "chance_loss") if history.names(name)]
        names = [*(["loss"] if len(sets) != 1 else []), *sets, *lines_below]
        series = {name.removeprefix("loss/"): history.series(name) for name in names}
        drawn = lines(series, "step", f"{stage.name}: loss, nats per supervised token", ("watched/loss", "chance_loss"))
        charts += [drawn] if drawn else []
    if charts:
        yield f'<div class="charts">{"".join(charts)}</div>'
    else:
        yield '<p class="faint">The steps of this run were not kept.</p>'


def _gates(run: RunFound) -> Iterator[str]:
    charts = []
    for stage in run.stages:
        for kind, title in (("gate_attn/", "cross-attention"), ("gate_ffn/", "feed-forward")):
            names = stage.history.names(kind)
            if names:
                steps = stage.history.series(names[0])[0]
                values = np.stack([np.interp(steps, *stage.history.series(name)) for name in names])
                layers = [name.removeprefix(kind) for name in names]
                if not values.any():
                    continue  # shut, and not trained
                what = f"{stage.name}: tanh of the {title} gates"
                charts.append(field_of(values, layers, steps, what, "step", "layers of the language model"))
    if charts:
        yield "<h2>Gates</h2><p>How much of what is heard each layer lets in: 0 is shut.</p>"
        yield f'<div class="charts">{"".join(charts)}</div>'


def _scores(stage: StageFound, name: str, scores: dict[str, Any]) -> Iterator[str]:
    found = intervals(stage.answers.get(name, []))
    lines_of = {**scores["skills"], **{f"turn {turn}": score for turn, score in scores.get("turns", {}).items()}}
    yield bars(
        [
            Bar(
                label=skill,
                value=score["audio"],
                low=found[skill][0] if skill in found else None,
                high=found[skill][1] if skill in found else None,
                marks={"audio of another recording": score["exchanged"], "commonest answer": score["majority"]},
                note=f"of {score['n']:,}",
            )
            for skill, score in lines_of.items()
        ]
    )
    for skill, classes in scores.get("classes", {}).items():
        yield f"<h3>{escape(skill)}: wanted (lines), answered (columns)</h3>"
        counts, columns = classes["counts"], [*classes["labels"], OTHER]
        shown = [c for c in range(len(columns)) if c < len(classes["labels"]) or any(row[c] for row in counts)]
        yield matrix(classes["labels"], [columns[c] for c in shown], [[row[c] for c in shown] for row in counts])
        rows = "".join(
            f"<tr><td>{escape(label)}<td>{recall:.1f}%<td>{precision:.1f}%<td>{n:,}<td>{escape(taken)}"
            for label, recall, precision, n, taken in class_rows(classes)
        )
        heads = "".join(f"<th>{head}</th>" for head in ("class", "recall", "precision", "questions", "taken for"))
        yield f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'


def _benchmarks(run: RunFound) -> Iterator[str]:
    measured = [(stage.name, name, told) for stage in run.stages for name, told in stage.suites.items()]
    if not measured:
        return
    yield "<h2>Benchmarks</h2>"
    heads = "".join(f"<th>{head}</th>" for head in ("metric", "here", "95% interval", "published"))
    for stage, name, told in measured:
        rows, sure = [], told.get("intervals", {})
        for metric, value in numbers_of(told):
            if not (isinstance(told.get(metric), float) or metric in sure):
                continue
            between = " to ".join(f"{bound:.1f}" for bound in sure.get(metric, ()))
            known = [p for p in told.get("published", ()) if p["metric"] == metric]
            others = ", ".join(f"{p['model']} {p['value']:g}" for p in known)
            rows.append(f"<tr><td>{escape(metric)}<td>{value:.1f}<td>{between}<td>{escape(others)}")
        yield f"<h3>{escape(stage)} on {escape(name)}, {told.get('n', told.get('rows', 0)):,} questions</h3>"
        yield f'<div class="wide"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _zero_shot(run: RunFound) -> Iterator[str]:
    measured = [(stage.name, name, told) for stage in run.stages for name, told in stage.clap.items()]
    if not measured:
        return
    yield "<h2>Sound and words in one space</h2>"
    for stage, name, told in measured:
        numbers = [
            f"<tr><td>{escape(f'{kind}: {what}'.replace('_', ' '))}<td>{value:.1f}%"
            for kind, inner in told.items()
            if isinstance(inner, dict)
            for what, value in inner.items()
            if isinstance(value, float)
        ]
        yield f"<h3>{escape(stage)} on {escape(name)}</h3><table>{''.join(numbers)}</table>"


def _rows_of(config: Config, stage: StageFound) -> dict[str, dict[str, Row]]:
    """Data set -> row id -> row, of the rows that are still there."""
    found: dict[str, dict[str, Row]] = {}
    for name in stage.answers:
        try:
            found[name] = {row.id: row for row in evaluation_rows(config, name)}
        except (FileNotFoundError, KeyError, StorageError):
            found[name] = {}
    return found


def _looks(stage: StageFound, rows: dict[str, dict[str, Row]], sounds: Sounds) -> Iterator[str]:
    for name, looks in stage.looks.items():
        shown = [(look, rows.get(name, {}).get(look.row)) for look in looks]
        cards = [
            f'<div class="card"><p>{escape(_short(look.prompt))}</p>{sounds.heard(row.own_clips[0], look)}</div>'
            for look, row in shown
            if row is not None and look.tokens
        ]
        if cards:
            yield f"<h2>Where answers look: {escape(name)}</h2>"
            yield (
                "<p>The mel of the recording, dashed where a window begins; under it, for each token of the answer, "
                "what its cross-attention (mean over layers and heads) looks at. A click plays from there.</p>"
            )
            yield from cards


def _answers(stage: StageFound, rows: dict[str, dict[str, Row]], sounds: Sounds) -> Iterator[str]:
    for name, answers in stage.answers.items():
        of_row: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for told in answers:
            of_row[told["row"]].append(told)
        chosen = sampled(of_row)
        yield f"<h2>Listen: {escape(name)}</h2>"
        yield (
            f"<p>{len(chosen)} of {len(of_row):,} recordings, drawn so that wrong answers are as common as right ones. "
            '<label class="filter"><input type="checkbox" value="right" checked> right</label>'
            '<label class="filter"><input type="checkbox" value="wrong" checked> wrong</label></p>'
        )
        cards = []
        for row_id in chosen:
            row = rows[name].get(row_id)
            players = "".join(map(sounds.player, row.own_clips)) if row else '<p class="faint">The row is gone.</p>'
            questions = "".join(map(_question, of_row[row_id][:QUESTIONS]))
            cards.append(f'<div class="card">{players}<p class="faint">{escape(row_id)}</p>{questions}</div>')
        yield f'<div class="cards">{"".join(cards)}</div>'


def sampled(of_row: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Rows to show, the same ones each time: half of them with a wrong answer, where there are as many."""
    rng = random.Random(0)
    ids = sorted(of_row)
    rng.shuffle(ids)
    wrong = [i for i in ids if not all(told["right"] for told in of_row[i])]
    right = [i for i in ids if all(told["right"] for told in of_row[i])]
    first = wrong[: max(RECORDINGS // 2, RECORDINGS - len(right))]
    return first + right[: RECORDINGS - len(first)]


def _question(told: dict[str, Any]) -> str:
    kind, mark = ("ok", "right") if told["right"] else ("no", "wrong")
    wanted = "" if told["right"] else f', wanted <b>{escape(told["wanted"])}</b>'
    sure = f' {told["confidence"]:.0%}' if "confidence" in told else ""
    unsure = ", not sure enough" if told.get("unsure") else ""
    return (
        f'<div class="qa {kind}">{escape(_short(told["prompt"]))} <b class="{mark}">{escape(told["heard"]) or "…"}</b>'
        f'<span class="faint">{sure}{unsure}</span>{wanted} '
        f'<span class="faint">with another recording: {escape(told["exchanged"]) or "…"}</span></div>'
    )


def _neighbours(run: RunFound, sounds: Sounds) -> Iterator[str]:
    folders = sorted((Path(run.config.output) / run.config.name / "retrieval").glob("*/index.json"))
    for about in folders:
        name = about.parent.name
        if name not in run.config.data.datasets:
            continue
        index = NeighbourIndex.read(about.parent)
        rows = open_rows(DataRoot(run.config.data.root), run.config.data.datasets[name].manifest)
        pieces = np.unique(np.linspace(0, len(index) - 1, min(QUERIES, len(index))).astype(np.int64))
        own = [{int(index.catalogue.recording_P[piece])} for piece in pieces]
        near = index.nearest(index.vectors(pieces), NEIGHBOURS, own=own)
        yield f"<h2>What sounds alike: {escape(name)}</h2>"
        for piece, found in zip(pieces.tolist(), near, strict=True):
            cards = [_piece(rows, index, piece, "this recording", sounds)]
            cards += [_piece(rows, index, other, f"similarity {alike:.2f}", sounds) for other, alike in found]
            yield f'<div class="card"><div class="cards">{"".join(cards)}</div></div>'


def _piece(rows: Sequence[Row], index: NeighbourIndex, piece: int, told: str, sounds: Sounds) -> str:
    row = rows[int(index.rows_of(piece)[0])]
    clip: Clip = row.own_clips[-1]
    text = row.captions[0] if row.captions else row.questions[-1].output
    return f'<div><span class="faint">{escape(told)}</span>{sounds.player(clip)}{escape(_short(text))}</div>'


def _times(run: RunFound) -> Iterator[str]:
    steps = {record.step: record.seconds for record in run.steps if record.ended}
    parts = steps or {stage.name: stage.seconds for stage in run.stages if stage.seconds}
    if parts:
        yield f"<h3>Steps of the run: {clock(sum(parts.values()))}</h3>"
        yield shares(parts, {name: clock(seconds) for name, seconds in parts.items()})
    for stage in run.stages:
        _, seconds = stage.history.series("step_seconds")
        _, waits = stage.history.series("data_wait")
        if not len(seconds):
            continue
        step, wait = float(np.median(seconds)), float(np.mean(waits))
        yield f"<h3>A step of {escape(stage.name)}: {step:.3g} s, half of them at most</h3>"
        yield shares(
            {"waiting for data": wait, "computing and exchanging": 1 - wait},
            {"waiting for data": f"{100 * wait:.1f}%", "computing and exchanging": f"{100 * (1 - wait):.1f}%"},
        )
        last = stage.result
        told = [
            f"{last[name] * scale:,.{digits}f} {unit}"
            for name, unit, scale, digits in (
                ("tokens_per_second", "text tokens a second", 1, 0),
                ("audio_seconds_per_second", "seconds of audio a second", 1, 1),
                ("mfu", "% of the machine's peak (MFU)", 100, 1),
                ("memory_bytes", "GiB at most", 2**-30, 2),
            )
            if name in last
        ]
        yield f'<p class="faint">{" · ".join(told)}</p>'


def _short(text: str) -> str:
    """A question on one line, its options left out."""
    return " ".join(text.partition("\nOPTIONS:")[0].split())
