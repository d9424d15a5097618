"""Do examples teach a model sounds that it never learnt? With rows behind neighbours in fine-tuning, and without.

    result = measure(Path(folder), progress)      # tools/bench.py few-shot-claim
    result = run_claim("configs/few_shot_claim.yaml", progress=progress, seeds=1)

Audio Flamingo 1's claim (arXiv 2402.01831: BG-Gun 1.6 to 53.5%, Birds 0.0 to 42.2%) in small. Each seed holds other
kinds of sound out of everything that is heard: CLAP, pre-training and both fine-tunings hear the remaining kinds, one
sound a recording. The fine-tunings are alike but for what they read: single rows, or also rows behind 2, 5 and 8
neighbours. Both are then asked what the unseen kinds are, in recordings that nothing else holds, behind 0 to 8 examples
of an index of the unseen kinds. Intervals are over recordings, each with and without examples. Finished runs stay on
disk, so a run that was stopped goes on where it was.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import tokenizers
from rich.table import Table

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import CONFIGS, load_config, to_yaml
from megatron_af.data.rows import Manifest, Question, Row, to_json
from megatron_af.demo.scenes import prepare_scenes
from megatron_af.evaluate.intervals import interval
from megatron_af.files import write
from megatron_af.pipeline.curriculum import run_curriculum
from megatron_af.progress import Progress
from megatron_af.text import words

ROOT = Path(__file__).parents[2]
VARIANTS = {"with_neighbours": "fine-tuned with rows behind neighbours", "single_rows": "with single rows alone"}
"""Last stages of the curriculum."""
SHOTS = (0, 1, 2, 4, 8)
UNSEEN = 4
"""Kinds that are held out."""
PROMPT = "what is the sound?"

type Right = dict[str, bool]
"""Of each question, by the row it was asked about."""


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """The whole comparison. Its runs lie where the configuration says."""
    return run_claim(CONFIGS / "few_shot_claim.yaml", progress=progress)


def run_claim(path: str | Path, overrides: Sequence[str] = (), *, progress: Progress, seeds: int = 3) -> dict[str, Any]:
    """Run what is left of the comparison and summarise it.

    Raises:
        ConfigError: the folder holds runs of other settings, or the configuration cannot run.
        StepFailed, RuntimeError: a stage or an evaluation failed; the message names its log.
    """
    found: dict[str, dict[int, Right]] = {variant: {shots: {} for shots in SHOTS} for variant in VARIANTS}
    unseen: list[list[str]] = []
    for seed in range(seeds):
        progress.update("seeds", seed, seeds)
        config = load_config(path, [*overrides, f"seed={seed}"])
        root = f"{config.data.root}_{seed}"
        data = replace(config.data, root=root, tokenizer=f"{root}/tokenizer.json")
        config = replace(config, name=f"{config.name}_{seed}", data=data)
        unseen.append(_prepare(config, progress))
        top = Path(config.output) / config.name / "claim.yaml"
        if top.exists() and top.read_text() != to_yaml(config):
            why = f"{top} is of other settings: remove its folder, or change name"
            raise ConfigError("the comparison cannot go on", [why])
        top.parent.mkdir(parents=True, exist_ok=True)
        write(top, to_yaml(config))
        run_curriculum(config)
        for variant in VARIANTS:
            for shots, right in _asked(config, variant, top).items():
                found[variant][shots] |= {f"{seed}/{row}": value for row, value in right.items()}
    progress.update("seeds", seeds, seeds)
    return summarise(found) | {"unseen": unseen}


def claim_rows(rows: Sequence[Row], kinds: frozenset[str]) -> list[Row]:
    """Of recordings of one sound those of some kinds, asked what it is; a caption, which the encoder learns from, says
    no more than that: neighbours are to be of one kind, not loud or long alike."""
    return [
        replace(
            row,
            questions=(Question(prompt=PROMPT, output=event["kind"], skill="kind"),),
            captions=(event["kind"],),
            negatives=(),
            spans=(),
        )
        for row in rows
        for event in row.meta["events"][:1]
        if event["kind"] in kinds
    ]


def told_rows(vocabulary: Sequence[str], number: int, seed: int) -> list[Row]:
    """Conversations without a sound: what is called what is said, and asked about again.

    A published language model has learnt from its texts to go on with what stands before, in any words; a toy learns it
    from these, and would lose it for words that no fine-tuning answers with.
    """
    return [_told(vocabulary, random.Random(f"{seed} told {row}"), f"told-{row}") for row in range(number)]


def _told(vocabulary: Sequence[str], rng: random.Random, row: str) -> Row:
    some = rng.randint(1, 4)
    drawn = rng.sample(vocabulary, 2 * some)
    called = list(zip(drawn[:some], drawn[some:], strict=True))
    turns = [rng.choice(called) for _ in range(rng.randint(3, 9))]
    questions = tuple(Question(prompt=asked, output=name, skill="told") for asked, name in turns)
    return Row(id=row, questions=questions, task="dialog", template="dialogue")


def held_out(kinds: Sequence[str], seed: int) -> list[str]:
    """The kinds that a seed holds out."""
    return sorted(random.Random(f"unseen {seed}").sample(sorted(kinds), UNSEEN))


def summarise(found: dict[str, dict[int, Right]]) -> dict[str, Any]:
    """Accuracy in percent by variant and number of examples, and what examples gain over none, with its interval."""
    return {
        "questions": len(found[next(iter(VARIANTS))][0]),
        "variants": {
            variant: {
                str(shots): {
                    "right": 100 * float(np.mean(list(right.values()))),
                    "gain": _gain(right, by_shots[0]),
                }
                for shots, right in by_shots.items()
            }
            for variant, by_shots in found.items()
        },
    }


def _gain(right: Right, before: Right) -> list[float]:
    """In points: mean, and the ends of its 95% interval, by resampling recordings."""
    gained = [100 * (float(value) - float(before[row])) for row, value in right.items()]
    return [fmean(gained), *interval(gained, list(right))]


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    title = f"{result['questions']} recordings of unseen kinds, {len(result['unseen'])} seeds"
    grid = Table(title=title, title_justify="left")
    grid.add_column("examples")
    for what in VARIANTS.values():
        grid.add_column(what, justify="right")
    for shots in map(str, SHOTS):
        cells = [result["variants"][variant][shots] for variant in VARIANTS]
        line = "{:.1f}% ({:+.1f}, {:+.1f} to {:+.1f})"
        grid.add_row(shots, *(line.format(cell["right"], *cell["gain"]) for cell in cells))
    return [grid]


def _prepare(config: Config, progress: Progress) -> list[str]:
    """The recordings, and rows of seen and unseen kinds, unless the same settings have made them; the unseen kinds."""
    root, wanted = Path(config.data.root), json.dumps({"seed": config.seed, **asdict(config.scenes)})
    marker = root / "claim.json"
    if not marker.exists() or json.loads(marker.read_text())["settings"] != wanted:
        root.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)  # from here on, what lies there is neither the old nor the new
        prepare_scenes(config.scenes, config.seed, root, progress)
        train, test = (list(Manifest(root / f"{part}.jsonl")) for part in ("train", "test"))
        kinds = {row.meta["events"][0]["kind"] for row in train}
        unseen = frozenset(held_out(sorted(kinds), config.seed))
        for name, rows in (
            ("seen", claim_rows(train, frozenset(kinds) - unseen)),
            ("shown", claim_rows(train, unseen)),
            ("asked", claim_rows(test, unseen)),
        ):
            write(root / config.data.datasets[name].manifest, "".join(to_json(row) + "\n" for row in rows))
        names = sorted({name for d in config.data.datasets.values() if d.neighbours for name in d.neighbours.names})
        tokenizer = tokenizers.Tokenizer.from_file(config.data.tokenizer)
        words.extend(tokenizer, names)[0].save(config.data.tokenizer)
        told = told_rows([*sorted(kinds), *names], config.scenes.texts, config.seed)
        write(root / config.data.datasets["told"].manifest, "".join(to_json(row) + "\n" for row in told))
        write(marker, json.dumps({"settings": wanted, "unseen": sorted(unseen)}))
    kinds_of: list[str] = json.loads(marker.read_text())["unseen"]
    return kinds_of


def _asked(config: Config, variant: str, top: Path) -> dict[int, Right]:
    """What was right of a variant's answers, by number of examples; it is asked first if need be."""
    folder = config.stage_folder(variant)
    files = {n: (folder / f"few_shot/{n}_from_shown" if n else folder) / "answers.jsonl" for n in SHOTS}
    if not all(file.exists() for file in files.values()):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={config.launch.processes_per_node}"]
        shots = ["--shots", ",".join(map(str, SHOTS)), "--from", "shown", f"stage={variant}"]
        log = folder / "asked.log"
        with log.open("a") as file:
            done = subprocess.run(
                [sys.executable, *launch, str(ROOT / "tools/evaluate.py"), "--config", str(top), *shots],
                stdout=file,
                stderr=file,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)},
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"evaluate.py ended with {done.returncode}; its output is in {log}")
    answers = {n: [json.loads(line) for line in file.read_text().splitlines()] for n, file in files.items()}
    return {n: {answer["row"]: bool(answer["right"]) for answer in lines} for n, lines in answers.items()}
