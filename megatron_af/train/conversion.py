"""Between checkpoints of ours and other people's weights: language models, Audio Flamingo 2, encoders.

    written = convert(config, Path("models/Qwen2.5-3B"), Path("checkpoints/qwen2.5-3b"))   # in, whatever it holds
    convert(config, written, Path("published"))          # a checkpoint of ours: its language model, out again
    convert(config, tuned, Path("adapter"), adapter=True)             # or what it trained beside it, for peft

All collectives of the whole world, in any layout: each rank reads its own slices, and what goes out passes rank 0
tensor by tensor.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_af.config import Config
from megatron_af.config.loading import load_config, to_yaml
from megatron_af.convert.adapter import peft_tensors, write_adapter
from megatron_af.convert.clap_folder import ClapFolder
from megatron_af.convert.encoders import EncoderFile
from megatron_af.convert.keys import KeyReport, compare_aliases, pickled_weights
from megatron_af.convert.language import (
    LanguageFolder,
    check_sizes,
    hugging_face_tensors,
    load_language,
    write_language,
)
from megatron_af.convert.released import (
    ReleasedFile,
    ReleasedFolder,
    aliases,
    load_released,
    release_problem,
    wanted_names,
)
from megatron_af.convert.shards import SHARD_BYTES
from megatron_af.decoder.lora import merge_adapters
from megatron_af.decoder.transformer_config import DTYPES
from megatron_af.files import put_in_place
from megatron_af.foreign import ForeignError
from megatron_af.model import AudioFlamingo, Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.paths import MANIFEST, SETTINGS, Resume
from megatron_af.runs.pointers import holds
from megatron_af.text.tokenizer import Tokenizer, other_words
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.checkpoint_reading import load_parts

LANGUAGE, ENCODER = ("lm", "rows"), ("encoder",)  # of a language model, of ClapCap or LAION-CLAP
WHOLE = ("encoder", "transform", "rows", "xattn", "lm")  # of a released AF2
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


class Occupied(ValueError):
    """A place to write to that holds something already."""


def convert(
    config: Config,
    source: Path,
    target: Path,
    *,
    adapter: bool = False,
    shard_bytes: int = SHARD_BYTES,
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Convert what ``source`` holds; the folder that was written.

    Args:
        source: a Hugging Face folder, a ``safe_ckpt``, Audio Flamingo 1's file, an encoder's, or a checkpoint of ours.
        target: folder for the checkpoint, or, of a checkpoint of ours, the new Hugging Face folder.
        adapter: of a checkpoint of ours, write its adapters alone. Otherwise they are merged into what is written.
        tell: told, on rank 0, what became of the tensors of published weights.

    Raises:
        ValueError, FileNotFoundError: ``source`` is no such folder or holds another model than ``config`` says.
        Occupied: ``target`` has to be new, or without checkpoints, and is not.
    """
    out = (source / MANIFEST).is_file()
    adapted = out and holds(source, "lora")
    if adapter and not adapted:
        raise ValueError(f"{source} holds no adapters (lora) of ours; leave out --adapter, or name one that does")
    if out:
        refuse_occupied(target)
    else:
        refuse_checkpoints(target)
    trained = replace(config, stage="")  # nothing has adapters but the run that trained them
    if out and (source / SETTINGS).is_file():
        wrote = load_config(source / SETTINGS)
        check_sizes(config.model.lm, wrote.model.lm, source)  # of other heads or positions all tensors may fit
        refuse_other_words(source, wrote.data.tokenizer, config.data.tokenizer)
        trained = wrote if adapted else trained
    build_as = replace(config, curriculum=trained.curriculum, stage=trained.stage)
    weights = pickled_weights(source) if source.is_file() else {}
    released: ReleasedFile | ReleasedFolder | None = None
    if ReleasedFile.holds(weights):
        released = ReleasedFile(source, weights)
    elif not out and (source / "metadata.json").is_file():
        released = ReleasedFolder(source)
    encoder: EncoderFile | ClapFolder | None = None
    if weights and not released:
        encoder = EncoderFile(weights, str(source))
    elif not out and not released and ClapFolder.holds(source):
        encoder = ClapFolder(source)
        encoder.check(config.model)
    folder = None if encoder or released or out else LanguageFolder(source, config.model.lm.family)
    if folder:
        folder.check(config.model.lm)
    if isinstance(released, ReleasedFolder) and (problem := release_problem(source, config.model.front_end.max_hz)):
        raise ValueError(problem)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    if folder:
        refuse_other_tokenizer(source, tokenizer, config.data.tokenizer)
    groups = process_groups.initialize(config.parallel, config.seed)
    vocabulary = Vocabulary(first_added_id=tokenizer.first_added_id, num_added=tokenizer.num_added)
    model = build(build_as, vocabulary, current_device())
    if adapter:
        load_parts(model, groups, source, ("lora",))
        written = _write_out(target, partial(_write_adapter, build_as, model))
    elif out:
        load_parts(model, groups, source, ("lm", "lora") if adapted else ("lm",))
        for chunk in model.chunks:
            merge_adapters(chunk)
        written = _write_out(target, partial(_write_language, config, model, shard_bytes))
    else:
        report = None
        if encoder:
            report = encoder.load(model.front.get_submodule("encoder"))
        elif released:
            has_encoder = isinstance(released, ReleasedFolder)
            report = _report(released, model, config, encoder=has_encoder)
            load_released(model, released.source, config.model, vocabulary, encoder=has_encoder)
        elif folder:
            report = folder.report()
            report.check(str(folder.folder), "model.lm")
            if dist.get_rank() == 0:  # who reads only a part of them all cannot compare them
                folder.compare(report)
            load_language(model.chunks, folder.source, config.model.lm)
            _start_rows(model, folder.mean_row(tokenizer.first_added_id))
        if report and dist.get_rank() == 0:
            tell(f"{source}: {report}")
        resume: Resume = {
            "stage": f"converted from {source.name}",
            "step": 0,
            "skipped": 0,
            "samples": 0,
            "world_size": dist.get_world_size(),
        }
        whole = WHOLE if isinstance(released, ReleasedFolder) else WHOLE[1:]
        parts = ENCODER if encoder else whole if released else LANGUAGE
        written = Checkpoints(target, keep=1).save(model, None, groups, resume, {}, parts, to_yaml(config))
    process_groups.destroy()
    return written


def _report(
    released: ReleasedFile | ReleasedFolder, model: AudioFlamingo, config: Config, *, encoder: bool
) -> KeyReport:
    """What the whole world wants of the file or folder; a collective.

    Raises:
        ValueError: a tensor is missing, or unknown.
    """
    wanted: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(wanted, wanted_names(model, config.model.lm, encoder=encoder))
    every = dict.fromkeys(name for names in wanted for name in names)
    report = KeyReport.of(released.keys, every, aliases)
    report.check(str(released.place), "model.lm, model.encoder, model.transform and model.cross_attention")
    if dist.get_rank() == 0:
        compare_aliases(report, released.source, str(released.place))
    return report


def refuse_occupied(target: Path) -> None:
    """
    Raises:
        Occupied: it is a file, a folder with something in it, or the one that whoever calls stands in.
    """
    if target.absolute() == Path.cwd():  # whatever took its place, a shell would stay in the one that was
        raise Occupied(f"expected a new or empty folder to write to, got {target}, which you are in: name another")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Occupied(f"expected a new or empty folder to write to, got {target}, which holds something: name another")


def refuse_checkpoints(target: Path) -> None:
    """
    Raises:
        Occupied: it holds checkpoints, whose place the new one would take: that of step 0, the newest, the oldest.
    """
    whole = sorted(manifest.parent.name for manifest in target.glob(f"step_*/{MANIFEST}"))
    if whole or (target.exists() and not target.is_dir()):
        what = f"holds {whole[-1]} already" if whole else "is a file"
        raise Occupied(f"expected a folder without checkpoints to write to, got {target}, which {what}: name another")


def refuse_other_words(checkpoint: Path, theirs: str, own: str) -> None:
    """
    Raises:
        ForeignError: a checkpoint of ours was written with another tokenizer than the one that would lie beside what
            goes out, as far as both are here and can be read.
    """
    if different := other_words(own, theirs):
        raise ForeignError(
            f"{checkpoint} was written with data.tokenizer = {theirs}, and {own} is another: {different}; name the "
            "first"
        )


def refuse_other_tokenizer(source: Path, tokenizer: Tokenizer, name: str) -> None:
    """
    Raises:
        ForeignError: the tokenizer beside the weights has other ids: what the model has learnt of a word would be taken
            for another word's; or it is broken, and nobody knows.
    """
    if not (source / "tokenizer.json").exists() and not (source / "vocab.json").exists():
        return
    try:
        own = Tokenizer.load(source)
    except (OSError, ValueError) as error:
        raise ForeignError(
            f"the tokenizer beside the weights cannot be compared with data.tokenizer = {name}: {error}. Fetch it "
            "again, or move it away if that is the model's"
        ) from None
    if different := tokenizer.differs(own):
        raise ForeignError(
            f"{source} has a tokenizer of its own, and data.tokenizer = {name} is another: {different}; name that of "
            "the weights"
        )


def _start_rows(model: AudioFlamingo, row_H: Tensor) -> None:
    added_rows_NH = model.front.get_parameter("added_rows")
    with torch.no_grad():
        added_rows_NH.copy_(row_H.expand_as(added_rows_NH))


def _write_out(target: Path, fill: Callable[[Path], None]) -> Path:
    """Let rank 0 fill a folder that appears whole; a collective, in which the others only give."""
    draft = target.with_name(f".{target.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    fill(draft)
    if dist.get_rank() == 0:
        put_in_place(draft, target)
    dist.barrier()
    return target


def _write_language(config: Config, model: AudioFlamingo, shard_bytes: int, folder: Path) -> None:
    tensors = hugging_face_tensors(model.chunks, config.model.lm)
    if dist.get_rank():
        assert not list(tensors), "all but rank 0 only give"
        return
    write_language(folder, tensors, config.model.lm, DTYPES[config.precision], shard_bytes)
    tokenizer = Path(config.data.tokenizer)
    for file in TOKENIZER_FILES if tokenizer.is_dir() else ():
        if (tokenizer / file).is_file():
            shutil.copyfile(tokenizer / file, folder / file)


def _write_adapter(config: Config, model: AudioFlamingo, folder: Path) -> None:
    assert config.lora is not None
    tensors = peft_tensors(model.chunks, config.model.lm)
    if dist.get_rank():
        assert not list(tensors), "all but rank 0 only give"
    else:
        write_adapter(folder, tensors, config.lora, config.model.lm, DTYPES[config.precision])
