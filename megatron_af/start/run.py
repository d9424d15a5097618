"""The whole way: understand a folder, write a YAML of its own, import, prepare, train, measure, show.

    start(Path("digits"))                        # tools/start.py digits
    start(Path("digits"), dry_run=True)          # what would be done, and how long it takes

Everything is done by the steps that the written YAML's own commands do: importers, preparation, the curriculum and its
evaluation. What is there and was made by the same settings is not made again.
"""

import itertools
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from megatron_af.config import Config, ConfigError, DataConfig, DatasetConfig, PrepareConfig
from megatron_af.config.addresses import refuse_secrets
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.config.rules import name_rules
from megatron_af.cores import share_cores
from megatron_af.data.rows import Manifest, Row
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate.classes import class_tables
from megatron_af.evaluate.hearing import table
from megatron_af.files import require_room, write
from megatron_af.foreign import read_json, read_text
from megatron_af.pipeline.curriculum import plan, run_curriculum
from megatron_af.pipeline.job import StepFailed
from megatron_af.pipeline.report import clock
from megatron_af.pipeline.stage_progress import StageProgress
from megatron_af.prepare.advice import fitting_text
from megatron_af.prepare.outcome import import_rows, prepare_recordings
from megatron_af.prepare.statistics import Statistics, measure
from megatron_af.prepare.vocabulary import make_tokenizer
from megatron_af.progress import Progress
from megatron_af.report.run import write_report
from megatron_af.start.layouts import understand
from megatron_af.start.origin import Begin, offered
from megatron_af.start.pace import Pace
from megatron_af.start.recipe import write_recipe
from megatron_af.start.tables import LINK, Found
from megatron_af.text.tokenizer import Tokenizer

FEWEST_ROWS = 20
"""Below which nothing can be learnt and held out."""


@dataclass(frozen=True, kw_only=True)
class _Facts:
    statistics: Statistics
    words: int
    classes: Counter[str]
    example: Row
    begin: Begin | None


def start(
    folder: Path, overrides: Sequence[str] = (), *, dry_run: bool = False, origin: Path | None = None
) -> None:
    """
    Args:
        origin: run, stage, checkpoint or release that is trained on where it fits; None: all weights are fresh.
        overrides: of the written YAML's keys; ``name=`` and ``data.root=`` decide where it is written.

    Raises:
        NotUnderstood: the folder holds nothing we know.
        ConfigError: too little, or settings that cannot run.
        StepFailed: import, preparation, a stage or its evaluation failed.
        Cancelled: this process was asked to stop; the same command goes on.
    """
    refuse_secrets(folder, overrides)
    given = dict(override.partition("=")[::2] for override in overrides)
    name = given.get("name") or slug(folder)
    root = Path(given.get("data.root") or Path("data") / name)
    file = root / f"{name}.yaml"
    problems = list(name_rules(Config(name=name)))
    if root.resolve().is_relative_to(folder.resolve()):
        problems.append(
            f"data.root = {root} lies in it, and it is only read: give another place behind the command, such as "
            f"data.root={folder.resolve().parent / f'{name}-data'}"
        )
    if problems:
        raise ConfigError(f"{folder} cannot be started", problems)
    if not dry_run:
        require_room(Path(given.get("output") or Config(name=name).output))
    with Progress() as progress, ExitStack() as stack:
        console = progress.console
        if dry_run:  # looked at beside, and left as it was
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = scratch if dry_run else root
        if file.exists():
            _refuse_other(folder, root, file)
        found = understand(folder, work)
        _tell(console, folder, found)
        if dry_run or not file.exists():
            prepare = _prepare(overrides)
            facts = _look(found, name, work, prepare, progress, offered(origin) if origin else None)
            _tell_facts(console, facts)
            text = write_recipe(name, root, found.origins, facts.statistics, facts.begin, facts.words)
            write(work / f"{name}.yaml", text)
        else:
            begins = " and says what is begun with, whatever --from does" if origin else ""
            progress.say(f"settings: {file}, which is there already{begins}; delete it to begin anew")
        if dry_run:
            console.print(text, highlight=False, markup=False, soft_wrap=True)
            config = load_config(work / f"{name}.yaml", overrides)
            _tell_times(console, config, facts.statistics)
            return
        config = load_config(file, overrides)
        _make(config, file, progress)
        plan(config)  # refuses what cannot run
        share_cores(config.launch.processes_per_node)
        began = time.monotonic()
        run_curriculum(config, say=StageProgress(config, progress))
        _tell_results(console, config, file, time.monotonic() - began)


def slug(folder: Path) -> str:
    """A name for the run, of letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:40] or "mine"


def _refuse_other(folder: Path, root: Path, file: Path) -> None:
    """Settings are of one folder; two folders of a name would take turns in one place.

    Raises:
        ConfigError: the file was written for another folder, which is still there.
    """
    before = root / LINK
    if before.is_dir() and folder.is_dir() and not before.samefile(folder):
        raise ConfigError(
            f"{folder} cannot be started",
            [f"{file} is of {before.resolve()}: give this folder a name of its own, such as name={file.stem}-2"],
        )


def _prepare(overrides: Sequence[str]) -> PrepareConfig:
    """How much may be left out of what is imported before there is a YAML that says so."""
    given = [override for override in overrides if override.startswith("data.prepare")]
    return load_config(CONFIGS / "model" / "demo.yaml", ["name=look", *given]).data.prepare


def _look(
    found: Found, name: str, root: Path, prepare: PrepareConfig, progress: Progress, begin: Begin | None
) -> _Facts:
    """What the rows hold that training will come from, and what fits them of the weights that are offered."""
    key = "all" if "all" in found.origins else "train"
    sets = {n: DatasetConfig(manifest=f"{n}.jsonl", origin=origin) for n, origin in found.origins.items()}
    words = root / "tokenizer.json"
    data = DataConfig(root=str(root), tokenizer=str(words), datasets=sets, prepare=prepare)
    config = Config(name=name, data=data)
    if import_rows(config, list(sets), progress):
        raise StepFailed(f"import: too much could not be used{_such_as(root, list(sets))}", give_up=True)
    _tell_shared(root, list(sets), progress)
    rows = Manifest(DataRoot(str(root)).fetch(f"{key}.jsonl"))
    classes = Counter(str(row.meta["class"]) for row in rows if "class" in row.meta)
    problems = []
    if len(rows) < FEWEST_ROWS:
        problems.append(f"{len(rows)} recordings can be used; {FEWEST_ROWS} are the fewest to learn from and hold out")
    if len(classes) == 1:
        problems.append(f"every recording is {min(classes)!r}: there is nothing to tell apart")
    if problems:
        raise ConfigError(f"{(root / LINK).resolve()} is not enough", problems)
    made = make_tokenizer(config, begin.tokenizer if begin else None)
    statistics = measure(rows, config, Tokenizer.load(words), name=key)
    if begin:
        begin = begin.with_words(made).with_texts(fitting_text(statistics.tokens))
    return _Facts(
        statistics=statistics,
        words=made.words,
        classes=classes,
        example=rows[len(rows) // 2],
        begin=begin,
    )


def _such_as(root: Path, names: Sequence[str]) -> str:
    """What is wrong with the first of the rows: a dry run's list of all of them goes with it."""
    for name in names:
        for line in read_text(root / f"{name}.left_out.jsonl").splitlines():
            if "row" in (entry := json.loads(line)) and not entry["reason"].startswith("note: "):
                return f", such as {entry['problem']}"
    return ", see above"


def _tell_shared(root: Path, names: Sequence[str], progress: Progress) -> None:
    """Of what is divided already, the recordings that lie on both sides: what is measured there was learnt."""
    manifests = {name: Manifest(root / f"{name}.jsonl") for name in names}
    paths = {name: {clip.path for row in manifest for clip in row.clips} for name, manifest in manifests.items()}
    for one, other in itertools.combinations(names, 2):
        if shared := sorted(paths[one] & paths[other]):
            progress.say(
                f"{one} and {other} share {len(shared):,} recordings, such as {shared[0]}: what is measured on them "
                "was learnt; take them out of one of the two"
            )


def _make(config: Config, file: Path, progress: Progress) -> None:
    """Rows, tokenizer and prepared recordings."""
    sets = config.data.datasets
    imported = [name for name, dataset in sets.items() if dataset.origin or dataset.part]
    _done(import_rows(config, imported, progress), "import")
    made = make_tokenizer(config)
    progress.say(f"words: {made.tokens:,} tokens in {made.file}")
    _refuse_longer(config, file)
    prepared = [name for name, dataset in sets.items() if dataset.source and not dataset.manifest.endswith(".jsonl")]
    _done(prepare_recordings(config, prepared, progress), "prepare")


def _refuse_longer(config: Config, file: Path) -> None:
    """What came since the settings were written may be longer: another label is in every question that names all.

    Raises:
        ConfigError: more questions than may be left out are longer than a stage's texts.
    """
    root, tokenizer, problems = DataRoot(config.data.root), Tokenizer.load(config.data.tokenizer), []
    for key, stage in config.curriculum.items():
        if stage.objective != "answer":
            continue
        questions, tokens = 0, list[int]()
        for name in (*stage.blend, *stage.evaluation):
            dataset = config.data.datasets[name]
            rows = open_rows(root, dataset.source or dataset.manifest)
            statistics = measure(rows, config, tokenizer, name=name)
            questions, tokens = questions + statistics.too_long[key], tokens + statistics.tokens
        if questions > config.data.prepare.max_bad_fraction * len(tokens):
            problems.append(
                f"curriculum.{key}.max_text_tokens = {stage.max_text_tokens}: {questions:,} of {len(tokens):,} "
                f"questions are longer, up to {max(tokens):,} tokens; raise it to {fitting_text(tokens)}, or delete "
                "the file to begin anew"
            )
    if problems:
        raise ConfigError(f"{file} is too small for what came to the recordings since", problems)


def _done(status: int, step: str) -> None:
    if status:
        raise StepFailed(f"{step}: too much could not be used, see above", give_up=True)


def _tell(console: Console, folder: Path, found: Found) -> None:
    for sentence in found.told:
        console.print(f"{folder}: {sentence}", highlight=False, markup=False, soft_wrap=True)


def _tell_facts(console: Console, facts: _Facts) -> None:
    s = facts.statistics
    seconds = sorted(s.seconds)
    lines = [
        f"{s.rows:,} rows, {s.hours * 60:,.1f} minutes of audio; half of the recordings are at most "
        f"{seconds[len(seconds) // 2]:.2g} s long, the longest {seconds[-1]:.3g} s"
    ]
    if facts.classes:
        most, least = facts.classes.most_common(1)[0], facts.classes.most_common()[-1]
        lines.append(
            f"{len(facts.classes):,} classes, {least[1]:,} ({least[0]}) to {most[1]:,} ({most[0]}) recordings each; "
            f"always saying the commonest is right {most[1] / s.rows:.0%} of the time"
        )
    question = facts.example.questions[0] if facts.example.questions else None
    if question:
        asked = " ".join(question.prompt.split())
        lines.append(f"for example {facts.example.id}: {asked} -> {question.output}")
    lines += facts.begin.told() if facts.begin else []
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _how_sure(confidence: dict[str, float]) -> str:
    right = f", and {confidence['right']:.1f}% of these are right" if "right" in confidence else ""
    return (
        f'asked with unsure="none of these", it answers {confidence["answered"]:.1f}% of these questions{right}; what '
        "is less sure than 95% of its right answers to development recordings is told to be none"
    )


def _tell_times(console: Console, config: Config, facts: Statistics) -> None:
    pace = Pace.measure(config)
    total = 0.0
    for name in config.curriculum:
        seconds = pace.seconds(config, name, facts.rows)
        total += seconds
        console.print(f"stage {name}: {config.curriculum[name].steps} steps, about {clock(seconds)}", highlight=False)
    console.print(
        f"in all about {clock(total)} on {config.launch.processes_per_node} processes of this machine as it is now; "
        "nothing was written",
        highlight=False,
    )


def _tell_results(console: Console, config: Config, file: Path, seconds: float) -> None:
    for stage, settings in config.curriculum.items():
        folder = config.stage_folder(stage)
        for name in settings.evaluation:
            if (hearing := folder / "hearing.json").is_file():
                scores = read_json(hearing)[name]
                console.print(table(scores, f"{stage}: held-out recordings of {name}"))
                console.print(*class_tables(scores.get("classes", {})))
                if "answered" in scores.get("confidence", {}):
                    console.print(_how_sure(scores["confidence"]), highlight=False, markup=False, soft_wrap=True)
            if (clap := folder / f"clap-{name}.json").is_file():
                zero_shot = read_json(clap).get("zero_shot", {})
                if "accuracy" in zero_shot:
                    console.print(f"{stage}: classes of {name} by their names alone: {zero_shot['accuracy']:.1f}%")
    run = Path(config.output) / config.name
    console.print(f"trained and measured in {clock(seconds)}; settings: {file}; results: {run}", highlight=False)
    console.print(
        f"look and listen: {write_report(run)}\n"
        f'ask it:   .venv/bin/python -c \'import megatron_af as af; print(af.load("{run}").answer("a.wav", "…"))\'\n'
        f"serve it: .venv/bin/python tools/serve.py {run}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
