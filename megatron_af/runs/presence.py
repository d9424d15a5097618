"""Is everything there that a stage needs: data, tokenizer, checkpoints? Read before any process group is made.

problems = list(missing_for_training(config))       # of config.stage, which must be one of config.curriculum
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from megatron_af.config import Config, DatasetConfig
from megatron_af.config.errors import suggestion
from megatron_af.data.shards import PREPARED, rows_file
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import MANIFEST, CheckpointError, latest
from megatron_af.runs.pointers import source_of
from megatron_af.runs.whole import readable
from megatron_af.text.tokenizer import Tokenizer


def missing_for_training(
    config: Config, coming: Collection[str] = (), made: Collection[str] = (), *, anew: bool = False
) -> Iterator[str]:
    """Its blend, what it will be measured on, and the weights it starts from or goes on from.

    Args:
        coming: stages that will have been trained by then.
        made: data sets that will have been made by then.
        anew: it will not go on from a checkpoint of its own.
    """
    stage = config.curriculum[config.stage]
    read = (*stage.blend, *stage.evaluation, stage.watch.dataset)
    yield from _data(config, [name for name in read if name not in made])
    yield from _narrower(config, config.hears(config.stage))
    yield from _texts(config)
    spec = spec_of(stage)
    own = config.stage_folder(config.stage) / "checkpoints"
    if not anew and _points_somewhere(own):
        try:
            yield from _unheld("the stage's own checkpoint", readable(own), spec.parts_of(stage))
        except CheckpointError as error:
            yield f"the stage's own checkpoint: {error}"
        return  # it goes on from there
    for key, origin in stage.entry.items():
        wanted = [part for part, at in spec.taken(stage).items() if at == origin and key in (part, "all")]
        where = f"curriculum.{config.stage}.entry.{key} = {origin}"
        if origin in coming:
            continue
        if origin not in config.curriculum:
            yield from _checkpoint(where, Path(origin), wanted, list(config.curriculum))
        elif _points_somewhere(folder := config.stage_folder(origin) / "checkpoints"):
            yield from _weights(where, folder, wanted)
        else:
            yield f"{where}: stage {origin} has no checkpoint in {folder.parent}; run stage={origin} first"


def missing_at_the_head(config: Config) -> Iterator[str]:
    """What no step of a pipeline makes, and a later one would miss after hours: checkpoints that stages start from, a
    tokenizer, and what data sets are prepared from."""
    for name, stage in config.curriculum.items():
        named = [origin for origin in dict.fromkeys(stage.entry.values()) if origin not in config.curriculum]
        for origin in named:
            keys = [key for key, value in stage.entry.items() if value == origin]
            where = f"curriculum.{name}.entry.{keys[0]} = {origin}"
            parts = [part for part, at in spec_of(stage).taken(stage).items() if at == origin]
            yield from _checkpoint(where, Path(origin), parts, list(config.curriculum))
    tokenizer = config.data.tokenizer
    if tokenizer and not is_there(tokenizer) and not _is_below(tokenizer, config.data.root, config.output):
        yield f"data.tokenizer = {tokenizer}: does not exist; name a folder, a tokenizer.json or a hub name"
    if tokenizer and any("lm" in spec_of(stage).parts_of(stage) for stage in config.curriculum.values()):
        yield from _without_rows(config)
    try:
        root = DataRoot(config.data.root)
    except (OSError, ValueError, ImportError) as error:
        yield f"data.root = {config.data.root}: {error}"
        return
    used = {name for stage in config.curriculum.values() for name in (*stage.blend, *stage.evaluation)}
    for name, dataset in config.data.datasets.items():
        if name not in used or root.exists(rows_file(dataset.manifest)):
            continue
        made_of = dataset.origin
        if dataset.part:
            continue
        if dataset.source and not root.exists(dataset.source) and made_of is None:
            yield f"data.datasets.{name}.source = {dataset.source}: not in {root}; put the rows there"
        elif made_of and "*" not in made_of.path and not root.exists(dataset.source) and not root.exists(made_of.path):
            yield f"data.datasets.{name}.origin.path = {made_of.path}: not in {root}; put it there or correct the path"
        elif made_of and made_of.audio and not root.exists(made_of.audio):
            yield f"data.datasets.{name}.origin.audio = {made_of.audio}: not in {root}; put the recordings there"


def missing_for_evaluation(config: Config, checkpoint: Path | None = None) -> Iterator[str]:
    """The sets it is measured on, and the checkpoint: its own, or the one that is named."""
    stage = config.curriculum[config.stage]
    measured = [*stage.evaluation, *filter(None, [stage.calibrate])]
    yield from _data(config, measured)
    yield from _narrower(config, measured)
    yield from _texts(config)
    folder = config.stage_folder(config.stage) / "checkpoints"
    if checkpoint is not None:
        parts = spec_of(stage).parts_of(stage)
        yield from _checkpoint(f"--checkpoint {checkpoint}", checkpoint, parts, [])
    elif _points_somewhere(folder):
        yield from _weights("the stage's checkpoint", folder, spec_of(stage).parts_of(stage))
    else:
        yield f"stage = {config.stage}: has no checkpoint in {folder.parent}; train it first"


def how_to_make(dataset: DatasetConfig) -> str:
    """What a data set that is not there asks for."""
    return "make it (tools/build_retrieval.py interleave)" if dataset.neighbours else "prepare the data"


def _data(config: Config, names: Iterable[str]) -> Iterator[str]:
    try:
        root = DataRoot(config.data.root)
    except (OSError, ValueError, ImportError) as error:
        yield f"data.root = {config.data.root}: {error}"
        return
    if "://" not in config.data.root and not Path(config.data.root).is_dir():
        yield f"data.root = {root}: no such folder; prepare the data (tools/prepare_data.py) or name where it lies"
        return
    for name in dict.fromkeys(filter(config.data.datasets.__contains__, names)):
        manifest = config.data.datasets[name].manifest
        key = f"data.datasets.{name}.manifest = {manifest}"
        try:
            if not root.exists(rows_file(manifest)):
                yield f"{key}: not in {root}; {how_to_make(config.data.datasets[name])} or correct the path"
        except (OSError, ValueError) as error:
            yield f"{key}: {error}"


def _narrower(config: Config, names: Iterable[str]) -> Iterator[str]:
    """Prepared sets that hold less of their clips than the stage hears: it would take that for all."""
    stage, front = config.curriculum[config.stage], config.model.front_end
    heard = front.heard_seconds(stage.max_windows)
    for name in sorted(filter(config.data.datasets.__contains__, names)):
        manifest = config.data.datasets[name].manifest
        try:
            summary = json.loads(DataRoot(config.data.root).read(f"{manifest}/{PREPARED}"))["summary"]
        except (OSError, ValueError, KeyError, ImportError):
            continue  # not prepared, or told already
        again = "prepare it again (tools/prepare_data.py prepare)"
        if summary.get("cut") and heard > summary["max_seconds"] * 1.001:
            yield (
                f"data.datasets.{name}.manifest = {manifest}: holds the first {summary['max_seconds']:g} s of clips, "
                f"{summary['cut']:,} of which are longer, and curriculum.{config.stage} hears {heard:g} s: {again}"
            )
        if summary.get("sample_rate", front.sample_rate) < front.sample_rate:
            yield (
                f"data.datasets.{name}.manifest = {manifest}: was prepared at {summary['sample_rate']:,} Hz, and "
                f"model.front_end.sample_rate = {front.sample_rate}: {again}"
            )


def _texts(config: Config) -> Iterator[str]:
    """Tokenizer, and what else the stage's objective reads."""
    tokenizer, stage = config.data.tokenizer, config.curriculum[config.stage]
    if not tokenizer:
        yield "data.tokenizer is not set: name a folder, a tokenizer.json or a hub name such as Qwen/Qwen2.5-3B"
    elif not is_there(tokenizer):
        yield f"data.tokenizer = {tokenizer}: does not exist; name a folder, a tokenizer.json or a hub name"
    elif "lm" in spec_of(stage).parts_of(stage):
        yield from _without_rows(config)
    yield from spec_of(stage).missing(config, config.stage)


def _without_rows(config: Config) -> Iterator[str]:
    """Words of a tokenizer on this machine that the language model has no row for; others tell when they are loaded."""
    if Path(config.data.tokenizer).exists():
        with suppress(ForeignError, OSError, ValueError):  # whoever loads it says what is wrong with it
            words = Tokenizer.load(config.data.tokenizer).first_added_id
            yield from filter(None, [config.model.lm.too_few_rows(words)])


def _is_below(path: str, *folders: str) -> bool:
    return any(Path(path).absolute().is_relative_to(Path(folder).absolute()) for folder in folders)


def is_there(name: str) -> bool:
    """A folder or file that exists, or what may be a name on the hub."""
    return Path(name).exists() or is_hub_name(name)


def is_hub_name(name: str) -> bool:
    """Whether it may be one, by its form alone."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not name.endswith(".json")


def _checkpoint(where: str, checkpoint: Path, parts: Iterable[str], stages: list[str]) -> Iterator[str]:
    """What is wrong with a checkpoint that is named by its path."""
    if not checkpoint.exists():
        yield f"{where}: neither a stage nor an existing checkpoint{suggestion(str(checkpoint), stages)}"
    elif not (checkpoint / MANIFEST).is_file():
        inside = sorted(folder.parent for folder in checkpoint.glob(f"*/{MANIFEST}")) if checkpoint.is_dir() else []
        hint = f"name the one inside, {inside[-1]}" if inside else "name the folder of one step"
        yield f"{where}: is no checkpoint (it has no {MANIFEST}); {hint}"
    else:
        yield from _unheld(where, checkpoint, parts)


def _weights(where: str, folder: Path, parts: Iterable[str]) -> Iterator[str]:
    """The same for the newest checkpoint of a stage."""
    try:
        checkpoint = latest(folder)
    except CheckpointError as error:
        yield f"{where}: {error}"
        return
    assert checkpoint is not None
    yield from _unheld(where, checkpoint, parts)


def _points_somewhere(folder: Path) -> bool:
    try:
        return latest(folder) is not None
    except CheckpointError:
        return True


def _unheld(where: str, checkpoint: Path, parts: Iterable[str]) -> Iterator[str]:
    """Parts whose weights neither lie in a checkpoint nor where it says that they do."""
    for part in parts:
        try:
            source = source_of(checkpoint, part)
        except CheckpointError as error:
            yield f"{where}: {error}"
            continue
        except (ForeignError, KeyError, OSError) as error:
            yield f"{where}: {checkpoint / MANIFEST} cannot be read ({error!r}); write the checkpoint again"
            return
        if not (source / MANIFEST).is_file():
            yield f"{where}: the weights of {part} lie in {source}, which is gone; bring it back or train it again"
