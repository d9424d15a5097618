"""Benchmarks asked of a trained stage: every question once in each wording, every metric from the same answers.

    measure_suites(config, ["esc50", "clotho"], checkpoint)             # a collective of the whole world

The stage's folder, or ``output/NAME``, gets of each benchmark ``suite-NAME.json`` (its numbers, which exit gates and
promotion gates know as ``NAME/METRIC``), ``suite-NAME.parquet`` (every question, its answers, and what each was worth)
and, in ``suite-NAME.left_out.jsonl``, what could not be asked and why. Answers are kept as they come, in
``suite-NAME.answers.jsonl``: a measurement that was stopped goes on, and where the judge could not be reached, or a
metric is new, the model is asked nothing again. Of a contrastive stage,
retrieval and zero-shot classes of the same recordings are measured.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import torch.distributed as dist
from rich.console import Console

from megatron_af.config import Config
from megatron_af.config.components import component
from megatron_af.data.rows import Row
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate.answered import Answered, Said, write_answered
from megatron_af.evaluate.asking import Kept, Way, ask, state_of
from megatron_af.evaluate.benchmarks import Asked, Questions, read_questions
from megatron_af.evaluate.clap import evaluate_clap
from megatron_af.evaluate.cleaning import cleaned
from megatron_af.evaluate.few_shot import behind_examples
from megatron_af.evaluate.hearing import AskedLine
from megatron_af.evaluate.metrics.base import Means, Metric, Scores
from megatron_af.evaluate.probes import CITING, cited_spans, moved, probed
from megatron_af.evaluate.suite_report import Measured, report_of, suite_table, with_published
from megatron_af.files import write
from megatron_af.foreign import read_json
from megatron_af.inference.embedder import ClapEmbedder
from megatron_af.inference.listener import Listener
from megatron_af.parallel.collectives import from_first
from megatron_af.prepare.generation import EndpointError
from megatron_af.progress import Progress, silent
from megatron_af.runs.benchmarks import METRIC, METRICS, Benchmark, load_benchmark, name_of
from megatron_af.runs.digests import digest_value
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import CheckpointError, latest
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.recordings import Recordings
from megatron_af.runs.results import are_of, bind_results, few_shot_folder

ANSWERS = "answers.jsonl"
"""Kind of the file that answers are kept in."""

type Shown = Callable[[Sequence[Row]], Sequence[Row]]
"""Rows as they are asked: alone, or behind examples."""


def alone(rows: Sequence[Row]) -> Sequence[Row]:
    return rows


class _Suite:
    """One benchmark of a measurement, and where its results go."""

    def __init__(self, config: Config, given: str, checkpoint: Path, output: Path | None) -> None:
        self.name, self.benchmark, self.checkpoint = name_of(given), load_benchmark(given), checkpoint
        self.folder = output / self.name if output else config.stage_folder(config.stage)
        only = replace(config.curriculum[config.stage], evaluation=(), suites=(given,))
        alone = replace(config, curriculum={**config.curriculum, config.stage: only})
        self._config, self._elsewhere = (alone if output else config), output is not None

    def file(self, kind: str) -> Path:
        return self.folder / f"suite-{self.name}.{kind}"

    def recordings(self, found: Questions) -> str:
        """A digest of what is heard: recordings are exchanged under their names, or come where they were missing."""
        paths = sorted({clip.path for row in found.rows for clip in row.clips})
        return digest_value(Recordings(self._config.data.root, Path(self._config.output)).digests(paths))

    def is_there(self, recordings: str) -> bool:
        """It was measured beside the stage's own results already, on these weights, rows, recordings and settings, as
        far as it can be."""
        weights = checkpoint_digest(self.checkpoint)
        if not self._elsewhere or not are_of(self._config, self._config.stage, weights, self.folder):
            return False
        report = read_json(self.file("json"))
        return bool(report.get("recordings") == recordings) and not self._lacked_what_came(report)

    def _lacked_what_came(self, report: Mapping[str, Any]) -> bool:
        """Whether a metric was skipped for a judge that may answer now, or for a package, or a Java, that is installed
        now, as its message asked for."""
        asked = self._config.evaluation
        means = Means(judge=asked.judge, sentences=asked.sentence_model)
        skipped = [component(name, METRICS, METRIC)(means) for name in report.get("skipped", {})]
        return any(not metric.missing() for metric in skipped)

    def put_down(self, found: Questions, recordings: str, report: dict[str, Any]) -> dict[str, Any]:
        report = report | {"recordings": recordings}
        counts = {"left_out": found.reasons, "odd": found.notes}
        report = with_published(report | {name: some for name, some in counts.items() if some}, self.benchmark)
        write(self.file("json"), json.dumps(report, indent=1))
        write(self.file("left_out.jsonl"), "".join(json.dumps(entry) + "\n" for entry in found.left_out))
        files = [file for file in (self.file("json"), self.file("parquet")) if file.is_file()]
        bind_results(self._config, files, self.checkpoint)
        return report


def measure_suites(
    config: Config,
    names: Sequence[str],
    checkpoint: Path,
    output: Path | None = None,
    shown: Shown = alone,
    shots: str = "",
) -> None:
    """A collective of the whole world.

    Args:
        names: of benchmarks.
        checkpoint: of ``config.stage``'s model.
        output: gets a folder for each benchmark; None: the results are the stage's own.
        shown: rows -> the same behind examples, which ``shots`` says in words; a collective. No probe is asked then.
    """
    first = dist.get_rank() == 0
    with Progress(Console(width=110)) if first else silent() as progress:
        suites = [_Suite(config, name, checkpoint, output) for name in names]
        for suite in suites if shots else ():  # a probe is asked without examples, and what changes would be theirs
            suite.benchmark = replace(suite.benchmark, probes=())
        root = DataRoot(config.data.root)
        found = {suite.name: from_first(partial(read_questions, suite.benchmark, root)) for suite in suites}
        # before anything is asked: what comes in their place meanwhile is not what was heard
        heard = from_first(lambda: {suite.name: suite.recordings(found[suite.name]) for suite in suites})
        there = from_first(lambda: [suite.is_there(heard[suite.name]) for suite in suites])
        for suite, measured in zip(suites, there, strict=True):
            if measured:
                progress.say(f"{suite.name}: measured already, in {suite.folder}")
        suites = [suite for suite, measured in zip(suites, there, strict=True) if not measured]
        if spec_of(config.curriculum[config.stage]).embeds:
            reports = _compare(config, checkpoint, {suite.name: found[suite.name] for suite in suites})
        else:
            reports = _ask_and_measure(config, suites, found, heard, progress, shown)
        for suite in suites if first else []:
            report = suite.put_down(found[suite.name], heard[suite.name], reports[suite.name])
            what = f"{suite.benchmark.title}, {config.name}, stage {config.stage}{f', {shots}' if shots else ''}"
            progress.console.print(suite_table(report, what))


def measure_suites_behind(
    config: Config, source: str, shots: Sequence[int], checkpoint: Path, output: Path | None = None
) -> None:
    """The benchmarks of ``config.stage`` behind each number of examples of ``source``; a collective of the whole world.

    Args:
        output: as of :func:`measure_suites`, of no examples; those behind examples go beside the stage's own.
    """
    suites = config.curriculum[config.stage].suites
    for count in shots if suites else ():
        behind = config.stage_folder(config.stage) / few_shot_folder(count, source) if count else output
        shown = partial(behind_examples, config, source, count)
        measure_suites(config, suites, checkpoint, behind, shown, f"{count} shots" if count else "")


def _ask_and_measure(
    config: Config,
    suites: Sequence[_Suite],
    found: Mapping[str, Questions],
    heard: Mapping[str, str],
    progress: Progress,
    shown: Shown,
) -> dict[str, dict[str, Any]]:
    """Reports by name, on the first rank."""
    if not suites:
        return {}
    first = dist.get_rank() == 0
    ways = {suite.name: len(suite.benchmark.wordings) + len(suite.benchmark.probes) for suite in suites}
    total = sum(len(found[suite.name].questions) * ways[suite.name] for suite in suites)
    line = AskedLine(progress, total, dist.get_world_size())
    # Before there is a listener: what finds examples has process groups of its own.
    worded, asking = dict[str, list[Sequence[Row]]](), dict[str, list[Way]]()
    for suite in suites:
        questions = found[suite.name].questions
        worded[suite.name] = [shown([one.worded(w) for one in questions]) for w in suite.benchmark.wordings]
        asking[suite.name] = _ways_of_asking(config, suite, questions, worded[suite.name])
    listener, answered, keeping = Listener(config, suites[0].checkpoint, watch=line), {}, {}
    for suite in suites:
        questions = found[suite.name].questions
        state = state_of(config, suite.benchmark, suite.checkpoint, worded[suite.name], heard[suite.name])
        kept = keeping[suite.name] = Kept(suite.file(ANSWERS), state)
        answered[suite.name] = ask(listener, suite.benchmark, questions, asking[suite.name], kept)
    listener.close()
    line.end()
    embedder = _text_tower(config) if any(_is_shared(suite.benchmark) for suite in suites) else None
    measured, waiting = dict[str, Measured](), list[tuple[_Suite, Means]]()
    for suite in suites:
        means = Means(
            embed=embedder.texts if embedder else None,
            judge=config.evaluation.judge,
            sentences=config.evaluation.sentence_model,
            folder=suite.folder,
            name=suite.name,
        )
        measured[suite.name] = measure_answers(suite.benchmark, answered[suite.name], means, shared=True)
        waiting.append((suite, means))
    if embedder:
        embedder.close()
    reports = {}
    for suite, means in waiting if first else []:  # a judge takes its time, and no other rank waits for it
        own = measured[suite.name] | measure_answers(suite.benchmark, answered[suite.name], means, shared=False)
        write_answered(suite.file("parquet"), answered[suite.name], own.each)
        keeping[suite.name].settle(waits=bool(own.skipped))
        reports[suite.name] = report_of(answered[suite.name], own)
    return reports


def _ways_of_asking(
    config: Config, suite: _Suite, questions: Sequence[Asked], worded: Sequence[Sequence[Row]]
) -> list[Way]:
    """Each wording, and each probe in the first one; a collective, and so is each way."""
    benchmark, root, rate = suite.benchmark, DataRoot(config.data.root), config.model.front_end.sample_rate

    def make(probe: str, spans: Sequence[tuple[float, float]] = ()) -> tuple[list[Row], Path | None]:
        made = suite.file(f"{probe}").absolute()
        return probed(probe, questions, benchmark.wordings[0], root, made, rate, spans)

    @cache
    def spans(listener: Listener) -> list[tuple[float, float]]:
        return cited_spans(listener, questions, benchmark.wordings[0])

    def cite(probe: str, listener: Listener) -> tuple[list[Row], Path | None]:
        return from_first(partial(make, probe, spans(listener)))

    def of_probe(probe: str) -> Way:
        if probe in CITING:
            return partial(cite, probe)
        return _always(from_first(partial(make, probe)))

    return [*(_always((rows, None)) for rows in worded), *(of_probe(probe) for probe in benchmark.probes if questions)]


def _always(found: tuple[Sequence[Row], Path | None]) -> Way:
    return lambda listener: found


def measure_answers(benchmark: Benchmark, answered: Sequence[Answered], means: Means, *, shared: bool) -> Measured:
    """The metrics of a benchmark that every rank measures together (``shared``), or the others."""
    scores, wordings, skipped = dict[str, Scores](), dict[str, list[float]](), dict[str, str]()
    probes, probed_each = dict[str, dict[str, float]](), dict[str, dict[str, Sequence[float | None]]]()
    for name in benchmark.metrics if answered else ():
        metric: Metric = component(name, METRICS, METRIC)(means)
        if metric.collective != shared:
            continue
        if problem := metric.missing():
            skipped[name] = problem
            continue
        try:
            own = metric.score(said(benchmark, answered, 0))
        except (EndpointError, OSError, SubprocessError) as error:
            skipped[name] = str(error)
            continue
        scores |= own
        if metric.of_wordings and len(benchmark.wordings) > 1:
            others = [metric.score(said(benchmark, answered, place)) for place in range(1, len(benchmark.wordings))]
            wordings |= {number: [s.value, *(other[number].value for other in others)] for number, s in own.items()}
        for place, probe in enumerate(benchmark.probes if metric.of_wordings else ()):
            found = metric.score(said_of_probe(benchmark, answered, place))
            probes.setdefault(probe, {}).update({number: score.value for number, score in found.items()})
            right_or_wrong = {n: s.each for n, s in found.items() if s.each and {*own[n].each} <= {0.0, 1.0, None}}
            probed_each.setdefault(probe, {}).update(right_or_wrong)
    return Measured(
        scores=scores,
        wordings=wordings,
        probes=probes,
        probed=probed_each,
        skipped=skipped,
    )


def said_of_probe(benchmark: Benchmark, answered: Sequence[Answered], place: int) -> list[Said]:
    """Answers to a probe as metrics see them."""
    other = [replace(one, answers=(one.probed[place],)) for one in answered]
    if benchmark.probes[place] == "options":
        other = [replace(one, options=moved(one.options)) for one in other]
    return said(benchmark, other, 0)


def said(benchmark: Benchmark, answered: Sequence[Answered], wording: int) -> list[Said]:
    """Answers to a wording as metrics see them."""
    return [
        Said(
            id=one.id,
            prompt=one.prompt,
            references=tuple(cleaned(text, benchmark.clean) for text in one.references),
            options=tuple(cleaned(text, benchmark.clean) for text in one.options),
            labels=one.labels,
            heard=cleaned(one.answers[wording] or "", benchmark.clean),
            logprobs=one.logprobs,
        )
        for one in answered
    ]


def _is_shared(benchmark: Benchmark) -> bool:
    return any(component(name, METRICS, METRIC).collective for name in benchmark.metrics)


def _text_tower(config: Config) -> ClapEmbedder | None:
    """The run's CLAP, if it has a trained one."""
    stage = config.retrieval.stage
    try:
        if not stage or latest(config.stage_folder(stage) / "checkpoints") is None:
            return None
    except CheckpointError:
        return None
    return ClapEmbedder(replace(config, stage=stage))


def _compare(config: Config, checkpoint: Path, found: Mapping[str, Questions]) -> dict[str, dict[str, Any]]:
    """Retrieval and zero-shot classes of a contrastive stage, on the recordings of each benchmark."""
    if not found:
        return {}
    embedder = ClapEmbedder(config, checkpoint)
    reports = {name: evaluate_clap(embedder, of_recordings(questions.rows)) for name, questions in found.items()}
    embedder.close()
    return reports


def of_recordings(rows: Sequence[Row]) -> list[Row]:
    """Rows about one recording as one, with all their captions and labels: AudioCaps has a line for each."""
    by_clip: dict[tuple[str, float], Row] = {}
    for row in rows:
        place = row.own_clips[-1].recording, row.own_clips[-1].start
        if before := by_clip.get(place):
            labels = sorted({*before.meta.get("labels", ()), *row.meta.get("labels", ())})
            meta = {**before.meta, **({"labels": labels} if labels else {})}
            row = replace(before, captions=(*before.captions, *row.captions), meta=meta)
        by_clip[place] = row
    return list(by_clip.values())
