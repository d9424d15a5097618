"""Does AF-CLAP's loss hear order and attributes better than the plain one? Same scenes, captions, steps and size.

    result = measure(Path(folder), progress)      # tools/bench.py clap-claim
    result = run_claim("configs/clap_claim.yaml", ["curriculum.clap.steps=100"], seeds=1)

For each form of the loss (``contrastive``) and seed it trains the contrastive stage of the configuration on
scenes of real recordings, and measures it on held-out scenes of held-out recordings: is the true caption preferred to
the same one with two events exchanged or with an attribute changed, and what do paraphrased queries cost. The plain
loss sees the same captions, one positive of each scene per step; hard negatives belong to AF-CLAP's loss. All also
learn from captions of the single events, so that they know the sounds that order and attributes are about. As a
control the test is repeated on another scene's audio: what is above chance there, the texts give away. Every finished
run stays on disk, so a run that was stopped goes on where it was.
"""

import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import load_config, to_yaml
from megatron_af.data.rows import Manifest, Row, Span, to_json
from megatron_af.demo.caption_rules import CHANGES, hard_negatives, paraphrases
from megatron_af.demo.questions import Event
from megatron_af.demo.scenes import prepare_scenes
from megatron_af.files import write
from megatron_af.progress import Progress
from megatron_af.text.words import build

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "clap_claim.yaml"
PLAIN = "plain"
FORMS = {
    "sum": {"positives": "sum", "symmetric": "false"},
    "each": {"positives": "each", "symmetric": "false"},
    "one": {"positives": "one", "symmetric": "false"},
    "sum-symmetric": {"positives": "sum", "symmetric": "true"},
    "each-symmetric": {"positives": "each", "symmetric": "true"},
    PLAIN: {"loss": "clip"},
}
"""What is compared -> its keys of ``contrastive``; all with the plain loss, and ``sum`` is the paper's."""
POSITIVES = 4
NEGATIVES_OF_A_KIND = 2
TRAIN, TEST = "claim_train", "claim_test"
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""95% two-sided, by number of seeds."""
MEASURES = {
    "composition": ("composition", "all"),
    "order": ("composition", "order"),
    "attribute": ("composition", "attribute"),
    "composition, other audio": ("composition, other audio", "all"),
    "text to audio R@1": ("retrieval", "text_to_audio_r1"),
    "text to audio R@10": ("retrieval", "text_to_audio_r10"),
    "paraphrased R@1": ("paraphrase", "paraphrased_r1"),
    "paraphrased R@10": ("paraphrase", "paraphrased_r10"),
    "kept of R@1": ("paraphrase", "kept_r1"),
    "kept of R@10": ("paraphrase", "kept_r10"),
}


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """The whole comparison. Its runs lie where the configuration says."""
    return run_claim(CONFIG, progress=progress)


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    return [table(result)]


def run_claim(path: str | Path, overrides: Sequence[str] = (), *, progress: Progress, seeds: int = 3) -> dict[str, Any]:
    """Run what is left of the comparison and summarise it.

    Raises:
        ConfigError: the folder holds runs of other settings.
        RuntimeError: a training or an evaluation failed; the message names its log.
    """
    config = load_config(path, overrides)
    folder = Path(config.output) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    settings, stored = to_yaml(config), folder / "config.yaml"
    if stored.exists() and stored.read_text() != settings:
        why = f"{folder} holds runs of other settings: remove or rename it, or change `name` in {path}"
        raise ConfigError("the comparison cannot go on", [why])
    _prepare(config, progress)
    write(stored, settings)
    reports: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    for number, (seed, form) in enumerate(itertools.product(range(seeds), FORMS)):
        progress.update("runs", number, seeds * len(FORMS), f"{form}, seed {seed}")
        reports[form].append(_measured(config, folder, form, seed))
    progress.update("runs", seeds * len(FORMS), seeds * len(FORMS))
    stage = config.curriculum["clap"]
    sizes = {"steps": stage.steps, "batch": stage.global_batch_samples}
    return summarise(reports) | sizes | {"recordings": _sources(config)}


def summarise(reports: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and values of each measure by form, and the paired difference to the plain loss with its 95% interval over
    seeds."""
    plain = reports[PLAIN]
    result: dict[str, Any] = {"rows": plain[0]["rows"], "seeds": len(plain), "measures": {}}
    for name, (test, key) in MEASURES.items():
        values = {form: [report[test][key] for report in found] for form, found in reports.items()}
        result["measures"][name] = {
            form: {"mean": statistics.mean(found), "seeds": found}
            | ({} if form == PLAIN else _gain([a - b for a, b in zip(found, values[PLAIN], strict=True)]))
            for form, found in values.items()
        }
    return result


def _gain(gains: Sequence[float]) -> dict[str, Any]:
    gain, spread = statistics.mean(gains), math.nan
    if len(gains) in STUDENT_T:
        spread = STUDENT_T[len(gains)] * statistics.stdev(gains) / math.sqrt(len(gains))
    return {"gain": gain, "interval": [gain - spread, gain + spread]}


def table(result: dict[str, Any]) -> Table:
    title = f"{result['rows']} held-out scenes, {result['seeds']} seeds, {result['steps']} steps of {result['batch']}"
    grid = Table(title=title, title_justify="left")
    grid.caption = "in brackets: gain over the plain loss, with its 95% interval"
    forms = list(next(iter(result["measures"].values())))
    for name in ("measure", *forms):
        grid.add_column(name, justify="left" if name == "measure" else "right")
    for name, measure in result["measures"].items():
        grid.add_row(name, *(_cell(measure[form]) for form in forms))
    return grid


def _cell(found: dict[str, Any]) -> str:
    if "gain" not in found:
        return f"{found['mean']:.1f}%"
    low, high = found["interval"]
    return f"{found['mean']:.1f}% ({found['gain']:+.1f}, {low:+.1f} to {high:+.1f})"


def claim_row(row: Row, seed: int, *, tested: bool) -> Row | None:
    """The scene's row with rule-based captions and typed negatives; None where nothing could be exchanged.

    Args:
        tested: captions to choose from are plain ones, so that form gives nothing away, and there are negatives of
            every kind. In training one of ``POSITIVES`` is plain, and as many of the negatives.
    """
    events = [Event(**event) for event in row.meta["events"]]
    rng = random.Random(f"{seed} {row.id}")
    negatives = hard_negatives(events, rng, NEGATIVES_OF_A_KIND, plain=1.0 if tested else 1 / POSITIVES)
    kinds = [kind for kind, _ in negatives]
    if not set(kinds).issuperset(CHANGES if tested else ()) or not negatives:
        return None
    return replace(
        row,
        questions=(),
        spans=() if tested else _spans(events),
        captions=paraphrases(events, rng, POSITIVES),
        negatives=tuple(text for _, text in negatives),
        meta={**row.meta, "negative_kinds": kinds},
    )


def _spans(events: Sequence[Event]) -> tuple[Span, ...]:
    """What each event is, and which one, said in the words of the captions and without hard negatives.

    Without them neither loss learns to hear in so few steps, and there is nothing to compare.
    """
    places = ["only"] if len(events) == 1 else ["first", *["next"] * (len(events) - 2), "finally"]
    return tuple(
        Span(start=event.start, end=event.end, captions=(caption,))
        for event, place in zip(events, places, strict=True)
        for caption in (event.kind, f"{place} {event.kind}")
    )


def _prepare(config: Config, progress: Progress) -> None:
    """Scenes, their rows as this comparison captions them, and a tokenizer of all its words, unless the same settings
    have made them."""
    root = Path(config.data.root)
    captions = {"positives": POSITIVES, "negatives_of_a_kind": NEGATIVES_OF_A_KIND, "single_events": True}
    marker, wanted = root / "claim.json", json.dumps({"seed": config.seed, **asdict(config.scenes), **captions})
    if marker.exists() and marker.read_text() == wanted:
        return
    root.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)  # from here on, what lies there is neither the old nor the new
    prepare_scenes(config.scenes, config.seed, root, progress)
    written: dict[str, list[Row]] = {}
    for name, source in ((TRAIN, "train"), (TEST, "test")):
        rows = (claim_row(row, config.seed, tested=name == TEST) for row in Manifest(root / f"{source}.jsonl"))
        written[name] = [row for row in rows if row is not None]
    texts = (text for kept in written.values() for row in kept for text in row.captions + row.negatives)
    build(texts).save(config.data.tokenizer)
    for name, kept in written.items():
        manifest = root / config.data.datasets[name].manifest
        write(manifest, "".join(to_json(row) + "\n" for row in kept))
    write(marker, wanted)


def _sources(config: Config) -> str:
    stored = json.loads((Path(config.data.root) / "recordings" / "recordings.json").read_text())
    return str(stored["source"])


def _measured(config: Config, folder: Path, form: str, seed: int) -> dict[str, Any]:
    """The report of one run, which is trained first if need be."""
    name = f"{form}_{seed}"
    result = folder / name / TEST / f"clap-{TEST}.json"
    if not result.exists():
        changes = [f"output={folder}", f"name={name}", f"seed={seed}"]
        changes += [f"curriculum.clap.contrastive.{key}={value}" for key, value in FORMS[form].items()]
        common = ["--config", str(folder / "config.yaml"), "stage=clap", *changes]
        _run(config, folder / f"{name}.log", "pretrain_clap.py", common)
        _run(config, folder / f"{name}.log", "evaluate.py", [*common, "--rows", TEST, "--output", str(folder / name)])
    report: dict[str, Any] = json.loads(result.read_text())
    return report


def _run(config: Config, log: Path, tool: str, arguments: Sequence[str]) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={config.launch.processes_per_node}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, *launch, str(ROOT / "tools" / tool), *arguments],
            stdout=file,
            stderr=file,
            env=environment,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{tool} ended with {done.returncode}; its output is in {log}")
