"""``stage.json``: what the contents of a stage's folder were made from, and how far that came.

    claim(config)                                   # before a stage is trained: is what lies there the same run?
    record = StageRecord.load(config.stage_folder("align"))
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from megatron_af.config import Config, ConfigError, FrontEndConfig
from megatron_af.config.effects import Effect, values
from megatron_af.config.loading import load_config
from megatron_af.files import write
from megatron_af.foreign import read_record
from megatron_af.runs.digests import digest_place
from megatron_af.runs.identity import check_resume, stage_inputs
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import MANIFEST, SETTINGS, latest, resolve_entry
from megatron_af.runs.pointers import holds, is_pointed_at
from megatron_af.text.tokenizer import other_words

RECORD = "stage.json"
COMPUTES = {
    "encoder": ("encoder.kind", "encoder.depths", "encoder.heads", "encoder.absolute_positions", "encoder.vector"),
    "transform": ("transform.layers", "transform.heads", "transform.positions"),
    "xattn": ("cross_attention.interval", "cross_attention.heads", "cross_attention.head_dim"),
    "lm": ("lm.layers", "lm.heads", "lm.kv_heads", "lm.tied", "lm.norm_eps"),
    "clap": ("clap.text_layers", "clap.text_heads"),
}
"""Part -> keys of ``model`` by which its weights are read, and which no shape need tell: heads of another width, layers
that are left out. With others, the weights mean nothing."""
GETS_USED_TO = {
    "encoder": tuple(f"front_end.{field.name}" for field in fields(FrontEndConfig)),
    "transform": ("transform.rope_base", "transform.sees"),
    "xattn": ("cross_attention.immediate",),
    "lm": ("lm.rope_base",),
}
"""The same, but weights can learn to do with others: for longer texts, or other recordings."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage's folder."""

    inputs: dict[str, str]
    """Digests of what it is made from (``identity.stage_inputs``)."""
    done: bool = False
    checkpoint: str = ""
    digest: str = ""
    seconds: float = 0.0
    evaluated: str = ""
    """Digest of the checkpoint that was measured last, and on what: other questions, and it is measured again."""

    @classmethod
    def load(cls, folder: Path) -> "StageRecord | None":
        file = folder / RECORD
        return read_record(cls, file) if file.is_file() else None

    def save(self, folder: Path) -> None:
        write(folder / RECORD, json.dumps(asdict(self), indent=1))


def claim(config: Config) -> None:
    """Record what ``config.stage`` is made from, before it is trained; the one process that is first does this.

    Raises ``ConfigError`` where its folder holds a checkpoint of another run, naming everything that differs, and where
    it would begin with weights that know other words by the ids of its tokenizer, or are of a model that computes
    otherwise. What weights must get used to is printed.
    """
    folder = config.stage_folder(config.stage)
    record, newest = StageRecord.load(folder), latest(folder / "checkpoints")
    if newest is not None:
        check_resume(config, newest, record.inputs if record else None)
    elif problems := [*_of_other_words(config), *_of_other_models(config, COMPUTES)]:
        raise ConfigError(f"stage {config.stage} cannot begin with the weights that its entry names", problems)
    else:
        for told in _of_other_models(config, GETS_USED_TO):
            print(f"to be sure that it is meant: {told}", flush=True)
    if record is None or newest is None:
        StageRecord(inputs=stage_inputs(config, config.stage)).save(folder)


def _of_other_words(config: Config) -> Iterator[str]:
    """Parts that another run trained with another tokenizer, as far as both lie here as they were.

    The rows of a table go by ids: what was learnt of a word would be taken for another one's.
    """
    stage, own = config.curriculum[config.stage], config.data.tokenizer
    for part in spec_of(stage).parts_of(stage):
        origin = stage.origin_of(part)
        if origin is None or origin in config.curriculum or not _says_words(config, part):
            continue
        theirs = _tokenizer_of(Path(origin)) if holds(Path(origin), part) else ""
        if different := other_words(own, theirs):
            yield (
                f"curriculum.{config.stage}.entry: {part} of {origin} was trained with the words of {theirs}, and "
                f"data.tokenizer = {own} has others: {different}. Begin with a copy of the former "
                f"(tools/make_tokenizer.py adds new words to it), or leave {part} out of the entry"
            )


def _of_other_models(config: Config, keys_of: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Parts that were trained in a model with other values of some keys, as far as their checkpoints say."""
    stage, ours = config.curriculum[config.stage], values(config.model, *Effect)
    for part in spec_of(stage).parts_of(stage):
        origin = stage.origin_of(part)
        if origin is None or part not in keys_of or not holds(checkpoint := resolve_entry(config, origin), part):
            continue
        if (settings := _settings_of(checkpoint)) is None:
            continue
        theirs = values(settings.model, *Effect)
        if different := [key for key in keys_of[part] if theirs[key] != ours[key]]:
            told = ", ".join(f"model.{key} = {theirs[key]} (here {ours[key]})" for key in different)
            yield (
                f"curriculum.{config.stage}.entry: {part} of {origin} was trained with {told}. Set the former, "
                f"or leave {part} out of the entry"
            )


@cache
def _settings_of(checkpoint: Path) -> Config | None:
    """What a checkpoint was trained with; None where nobody knows. All parts ask for it, and it never changes."""
    settings = checkpoint / SETTINGS
    try:
        return load_config(settings) if settings.is_file() else None
    except ConfigError:  # of another version
        return None


def _tokenizer_of(checkpoint: Path) -> str:
    """What a checkpoint was trained with; empty where nobody knows, or it has grown since."""
    record, settings = StageRecord.load(checkpoint.resolve().parents[1]), _settings_of(checkpoint)
    place = settings.data.tokenizer if settings else ""
    grown = record and Path(place).exists() and record.inputs.get("tokenizer") != digest_place(Path(place))
    return "" if grown else place


def _says_words(config: Config, part: str) -> bool:
    """Whether a part has a row for each word of ``data.tokenizer``."""
    return part == "lm" or (part == "clap" and not config.model.clap.text_tower)


def put_aside(folder: Path) -> None:
    """Move a stage's folder away, so that it can be trained anew.

    One older result is kept beside it until the next one replaces it; and all those whose weights others point at.
    """
    old = folder.with_name(f"{folder.name}.replaced")
    if old.exists() and not any(is_pointed_at(place, folder.resolve().parents[1]) for place in checkpoints_in(old)):
        shutil.rmtree(old)
    number = 2
    while old.exists():
        old, number = folder.with_name(f"{folder.name}.replaced-{number}"), number + 1
    folder.rename(old)


def checkpoints_in(stage: Path) -> list[Path]:
    """Complete checkpoints of a stage's folder."""
    return [manifest.parent.resolve() for manifest in stage.glob(f"checkpoints/*/{MANIFEST}")]
