"""What makes two runs of a stage the same: one answer for resuming, skipping, the pipeline, evaluation and release.

    inputs = stage_inputs(config, "align")       # {"config": "sha256:…", "data/clotho": …, "parent/encoder": …}
    check_resume(config, checkpoint)             # raises before any weight is loaded

To go on exactly means that every step from here on is the one that the uninterrupted run would have made: the same
samples in the same order, and an update that differs by no more than the rounding of another layout. So whatever
shapes weights or data order (``config/effects.py``) must be as it was, and so must what the files say: rows and their
recordings, tokenizer, text tower, and the checkpoints that a stage starts from. Everything else may change:

- how long the stage is: it may go on. A cosine schedule is then that of the new length, and its past steps are those of
  the old one. What was trained longer than is asked for stays as it is.
- how the step lies on the machines. Floating-point sums then round otherwise, and random masks (drop-path,
  SpecAugment), which each rank draws, are others.
- where things lie (files are compared by what they say), what is logged, measured and released.

Another learning rate is another run. It gets another ``name``, and takes the weights by its ``entry``.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_af.config import RETRIEVAL_STEP, Config, ConfigError
from megatron_af.config.effects import Effect, values
from megatron_af.config.loading import load_config
from megatron_af.data.shards import rows_file
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import opened
from megatron_af.runs.benchmarks import load_benchmark, name_of
from megatron_af.runs.digests import digest_file, digest_place, digest_value
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import SETTINGS, resolve_entry
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.presence import how_to_make
from megatron_af.runs.recordings import Recordings


def stage_settings(config: Config, stage: str) -> dict[str, Any]:
    """Key -> value of what a stage's samples and updates follow from, of its own data sets and of no other stage."""
    settings = config.curriculum[stage]
    others = [f"curriculum.{name}." for name in config.curriculum if name != stage]
    others += [f"data.datasets.{name}." for name in config.data.datasets if name not in settings.blend]
    found = _flat(values(config, Effect.WEIGHTS, Effect.ORDER))
    if settings.batch_tokens:  # the batch follows from it (sizes.py), and a resume takes the recorded one
        found.pop(f"curriculum.{stage}.global_batch_samples")
    return {key: value for key, value in found.items() if not key.startswith(tuple(others))}


def stage_inputs(config: Config, stage: str) -> dict[str, str]:
    """Digest of everything that the stage's weights follow from, by name.

    Raises ``FileNotFoundError`` for a manifest, tokenizer or parent checkpoint that is not there.
    """
    inputs = {"config": digest_value(stage_settings(config, stage)), **_contents(config, stage)}
    for part, origin in sorted(config.curriculum[stage].entry.items()):
        checkpoint = resolve_entry(dataclasses.replace(config, stage=stage), origin)
        inputs[f"parent/{part}"] = checkpoint_digest(checkpoint)
    return inputs


def evaluation_inputs(config: Config, stage: str) -> str:
    """What a stage is measured on and how, in words and as a digest; raises what :func:`dataset_index` raises."""
    settings = config.curriculum[stage]
    names, calibrate = settings.evaluation, settings.calibrate
    rows = {name: dataset_digest(config, name) for name in names}
    suites = {name: _suite_digest(config, name) for name in settings.suites}
    asked = [rows, values(config.evaluation, Effect.ANSWERS), *([suites] if suites else [])]
    asked += [{"calibrate": dataset_digest(config, calibrate)}] if calibrate else []
    return f"{', '.join([*names, *map(name_of, suites)])} ({digest_value(asked)})"


def _suite_digest(config: Config, suite: str) -> str:
    """Of what a benchmark's file says, and of the files that its rows come from. Raises ``FileNotFoundError``."""
    benchmark, root = load_benchmark(suite), DataRoot(config.data.root)
    folder = root.local(benchmark.source.path)
    if folder is not None and folder.is_dir():
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        return digest_value([dataclasses.asdict(benchmark), names])
    listed = benchmark.source.dictionary
    files = {"path": benchmark.source.path, **({"dictionary.path": listed.path} if listed else {})}
    found = []
    for key, path in files.items():
        try:
            found.append(digest_file(root.fetch(path)))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"benchmark {suite}: there is no {root}/{path}; put it there, or correct source.{key}"
            ) from None
    return digest_value([dataclasses.asdict(benchmark), *found])


def step_settings(config: Config, step: str) -> dict[str, Any]:
    """What of the configuration decides the result of a pipeline step that is no stage: prepare, index, release."""
    own = config.all_steps()[step]
    found = values(config.data, Effect.FILES, prefix="data")
    found |= {f"data.datasets.{name}.manifest": dataset.manifest for name, dataset in config.data.datasets.items()}
    found |= values(config.model.front_end, Effect.WEIGHTS, prefix="model.front_end")
    found |= values(config.scenes, Effect.FILES, prefix="scenes")
    found |= values(config.retrieval, Effect.FILES, prefix="retrieval") if step == RETRIEVAL_STEP else {}
    windows = {f"curriculum.{name}.max_windows": stage.max_windows for name, stage in config.curriculum.items()}
    return {"name": config.name, "seed": config.seed, **found, **windows, **values(own, Effect.FILES, prefix="step")}


def measured_settings(config: Config, stage: str) -> dict[str, Any]:
    """What of the configuration decides the numbers of a stage: the stage itself, and how it is measured."""
    settings, datasets = config.curriculum[stage], config.data.datasets
    asked = values(settings, Effect.ANSWERS) | values(config.evaluation, Effect.ANSWERS)
    rows = {f"evaluation.{name}": datasets[name].manifest for name in settings.evaluation if name in datasets}
    return stage_settings(config, stage) | asked | rows


def check_resume(config: Config, checkpoint: Path, recorded: Mapping[str, str] | None = None) -> None:
    """Raises ``ConfigError`` with everything that keeps ``config.stage`` from going on from its checkpoint.

    Args:
        config: the run as it is now, its sizes resolved (``sizes.py``).
        checkpoint: holds the configuration it was written with.
        recorded: :func:`stage_inputs` of the run that wrote it, where they are known; what they say of files is
            compared as well. A parent that is gone is not missed: its weights are in the checkpoint, or pointed at.
    """
    change = (
        "set these back, or start over: with another name= (its curriculum.<stage>.entry may name this checkpoint to "
        f"begin with its weights), or without {checkpoint.parent}"
    )
    if not (checkpoint / SETTINGS).is_file():
        raise ConfigError(f"{checkpoint} holds no {SETTINGS} to compare with, so no run can go on from it; {change}")
    before = load_config(checkpoint / SETTINGS)
    was = stage_settings(before, config.stage) if config.stage in before.curriculum else {}
    now = stage_settings(config, config.stage)
    contents = _contents(config, config.stage) if recorded else {}
    moved = _compared_by_contents(config, contents, recorded or {})
    problems = [
        f"{key}: was {was.get(key, 'absent')}, now {now.get(key, 'absent')}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key) and not (key in was and key in moved)
    ]
    problems += list(_changed_files(config, contents, recorded or {}))
    if problems:
        raise ConfigError(f"stage {config.stage} cannot go on from {checkpoint}; {change}", problems)


def dataset_digest(config: Config, dataset: str) -> str:
    """Digest of a data set's rows and of their recordings.

    The index of a prepared set holds every clip's digest. Behind a JSONL of rows lie recordings that may be replaced
    under their names, so those count as well (``recordings.py`` says how far).

    Raises what :func:`dataset_index` raises.
    """
    index = dataset_index(config, dataset)
    digest = digest_file(index)
    if index.suffix != ".jsonl" or not (paths := recordings_of(index)):
        return digest
    return digest_value([digest, Recordings(config.data.root, Path(config.output)).digests(paths)])


def recordings_of(rows: Path) -> list[str]:
    """Paths of the recordings that the rows of a JSONL name; what is no row is told by whoever reads it."""
    found = set()
    with opened(rows) as file:
        for line in file:
            try:
                clips = json.loads(line).get("clips", [])
                found |= {clip["path"] for clip in clips}
            except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
                continue
    return sorted(path for path in found if isinstance(path, str))


def dataset_index(config: Config, dataset: str) -> Path:
    """The file that says all of a data set: its JSONL, or the index of a prepared one, which holds every clip's digest.

    Raises ``KeyError`` or ``FileNotFoundError`` that name the YAML key.
    """
    if dataset not in config.data.datasets:
        raise KeyError(
            f"a blend or an evaluation names the data set {dataset!r}, which data.datasets lacks; "
            f"it has {sorted(config.data.datasets)}"
        )
    root, manifest = DataRoot(config.data.root), config.data.datasets[dataset].manifest
    try:
        return root.fetch(rows_file(manifest))
    except FileNotFoundError:
        how = how_to_make(config.data.datasets[dataset])
        raise FileNotFoundError(
            f"data.datasets.{dataset}.manifest: there is no {root}/{manifest}; {how}, or correct the path"
        ) from None


def _contents(config: Config, stage: str) -> dict[str, str]:
    """Digests of the files behind a stage's settings: rows and recordings, tokenizer, and what its objective reads."""
    found = {f"data/{name}": dataset_digest(config, name) for name in sorted(config.curriculum[stage].blend)}
    for name, place in _places(config, stage).items():
        path = Path(place)
        if place and path.exists():  # a name on the hub is compared as a name
            found[name] = digest_place(path)
    return found


def _places(config: Config, stage: str) -> dict[str, str]:
    return {"tokenizer": config.data.tokenizer, **spec_of(config.curriculum[stage]).files(config)}


def _compared_by_contents(config: Config, now: Mapping[str, str], recorded: Mapping[str, str]) -> set[str]:
    """Keys of ``config.stage`` that name files, or checkpoints, whose digests are known then and now: they may lie
    elsewhere."""
    places = {place for name, place in _places(config, config.stage).items() if name in now and name in recorded}
    keys = {key for key, value in stage_settings(config, config.stage).items() if str(value) in places}
    for part, origin in config.curriculum[config.stage].entry.items():
        with suppress(FileNotFoundError):
            if f"parent/{part}" in recorded and resolve_entry(config, origin).exists():
                keys.add(f"curriculum.{config.stage}.entry.{part}")
    return keys


def _changed_files(config: Config, now: Mapping[str, str], recorded: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(now.keys() | {name for name in recorded if not name.startswith(("config", "parent/"))}):
        if recorded.get(name) != now.get(name):
            yield f"{name}: other files than those it was trained with"
    for part, origin in config.curriculum[config.stage].entry.items():
        name = f"parent/{part}"
        try:
            if name in recorded and checkpoint_digest(resolve_entry(config, origin)) != recorded[name]:
                yield f"{name}: {origin} is not the checkpoint that it started from"
        except FileNotFoundError:
            continue


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings of plain values, such as a blend, key by key."""
    flat: dict[str, Any] = {}
    for key, value in found.items():
        inner = value if isinstance(value, Mapping) else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": entry for name, entry in inner.items()}
    return flat
