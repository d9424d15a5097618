"""A release: everything that answering takes, in a folder of its own that later training does not touch.

    release = make_release(config, "long")      # runs/demo/releases/3f2a91c04d7e
      config.yaml  digest.txt  tokenizer/  text_tower/  long/checkpoints/{latest,step_…}  sources/…
      long/calibration.{json,npy}            where it is known how sure an answer must be
      retrieval/…  clap/checkpoints/…          where training rows were indexed: to find examples for prompts
      retrieval/…  retrieval_encoder/          the same, by a published encoder

A stage's folder belongs to training, which moves it away when its inputs change; the model in production must not
move with it. What came from the hub is copied in as well: a release answers on a machine without network and caches.
Files are hard links where the disk has them, so a release takes no space of its own.
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from megatron_af.config import Config
from megatron_af.config.loading import to_yaml
from megatron_af.files import put_in_place, write
from megatron_af.runs.calibration import CALIBRATION, read_calibration
from megatron_af.runs.digests import DIGEST_FILE, digest_file, digest_value, record_digest, verify_digest
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import LATEST, MANIFEST, outcome, read_manifest
from megatron_af.runs.pointers import SOURCES, checkpoint_digest, source_of
from megatron_af.text.tokenizer import fetch

CONFIG, TOKENIZER, TEXT_TOWER = "config.yaml", "tokenizer", "text_tower"
INDEXES, RETRIEVAL_ENCODER = "retrieval", "retrieval_encoder"


def make_release(config: Config, stage: str, expected_digest: str = "") -> Path:
    """Release what a stage came to, its best checkpoint or its newest; the same checkpoint again gives the same folder.

    Raises:
        FileNotFoundError: the stage has no checkpoint.
        DigestMismatch: its files, or those of a checkpoint that it takes parts from, are not the recorded ones, or not
            ``expected_digest``. Nothing is written.
    """
    checkpoint = outcome(config, stage)
    if checkpoint is None:
        raise FileNotFoundError(f"stage {stage} has no checkpoint in {config.stage_folder(stage)}; train it first")
    digests = _verified(checkpoint.resolve(), expected_digest)
    indexes = _indexes(config)
    identity = digests[checkpoint.resolve()]
    if indexes:
        identity = digest_value([identity, *(digest_file(folder / "index.json") for folder in indexes)])
    calibration = read_calibration(config.stage_folder(stage), digests[checkpoint.resolve()])
    if calibration is not None:
        identity = digest_value([identity, digest_file(config.stage_folder(stage) / CALIBRATION)])
    release = Path(config.output).absolute() / config.name / "releases" / identity[7:19]
    if (release / DIGEST_FILE).is_file():
        verify_digest(release)
        return release
    partial = release.with_name(f"{release.name}.{os.getpid()}.partial")
    _add_checkpoint(checkpoint.resolve(), digests, partial, stage)
    if calibration is not None:
        released = checkpoint_digest(partial / stage / "checkpoints" / checkpoint.resolve().name)
        replace(calibration, weights=released).write(partial / stage)
    for folder in indexes:
        _link_tree(folder, partial / INDEXES / folder.name)
    if indexes and config.retrieval.encoder:
        # Imported only now: it needs torch, and most releases need no such folder.
        from megatron_af.convert.clap_folder import ClapFolder

        clap = ClapFolder(Path(config.retrieval.encoder))
        _link_tree(clap.folder, partial / RETRIEVAL_ENCODER, only=clap.files)
    hears = outcome(config, config.retrieval.stage) if indexes and config.retrieval.stage else None
    if hears is not None and config.retrieval.stage != stage:
        _add_checkpoint(hears.resolve(), _verified(hears.resolve()), partial, config.retrieval.stage)
    stages = {stage, config.retrieval.stage} & config.curriculum.keys() if indexes else {stage}
    _add_texts(config, stages, partial)
    tracking = replace(config.tracking, enabled=False)
    # Wherever it will be served from, examples come from the folder they were indexed in.
    root = config.data.root if "://" in config.data.root else str(Path(config.data.root).absolute())
    kept = replace(config, stage=stage, tracking=tracking, data=replace(config.data, root=root))
    write(partial / CONFIG, to_yaml(kept))
    record_digest(partial)
    put_in_place(partial, release)
    return release


def _add_texts(config: Config, stages: Iterable[str], partial: Path) -> None:
    """Tokenizer, and what else the stages' objectives read, from a folder, a file or the hub's cache.

    Raises:
        FileNotFoundError: a hub name whose files are neither cached here nor can be reached.
    """
    name = config.data.tokenizer
    if Path(name).is_file():
        tokenizer = Path(name)
        _link_tree(tokenizer.parent, partial / TOKENIZER, only=(tokenizer.name, "tokenizer_config.json"))
        (partial / TOKENIZER / tokenizer.name).rename(partial / TOKENIZER / "tokenizer.json")
    elif name:
        _link_tree(Path(name) if Path(name).is_dir() else fetch(name), partial / TOKENIZER)
    for stage in stages:
        for what, place in spec_of(config.curriculum[stage]).files(config).items():
            if place:
                _link_tree(Path(place) if Path(place).is_dir() else _cached(place), partial / what)


def _cached(name: str) -> Path:
    """Folder of a hub repository's files, as they were loaded here."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} is no folder, and the hub's cache on this machine has no whole copy of it: a release carries it "
            "along; download it once (huggingface_hub.snapshot_download) or name a folder"
        ) from error


def _indexes(config: Config) -> list[Path]:
    """Folders of the neighbour indexes that were built (``retrieval/index.py``)."""
    if not config.retrieval.indexes:
        return []
    return sorted(file.parent for file in (Path(config.output) / config.name / INDEXES).glob("*/index.json"))


def _verified(checkpoint: Path, expected_digest: str = "") -> dict[Path, str]:
    """Digest of every folder that holds weights of a checkpoint, after a look at the files."""
    manifest = read_manifest(checkpoint)
    sources = {source_of(checkpoint, part): part for part in manifest["parts"]}
    digests = {folder: checkpoint_digest(folder) for folder in {checkpoint, *sources}}
    for folder, digest in digests.items():
        verify_digest(folder, expected_digest or digest if folder == checkpoint else digest)
    return digests


def _add_checkpoint(checkpoint: Path, digests: dict[Path, str], partial: Path, stage: str) -> None:
    """Link a checkpoint, and those it takes parts from, into a release that is being made."""
    target = partial / stage / "checkpoints" / checkpoint.name
    _link_tree(checkpoint, target)
    manifest = read_manifest(checkpoint)
    for part in manifest["parts"]:
        source = source_of(checkpoint, part)
        if source != checkpoint:
            copy = partial / SOURCES / digests[source][7:19]
            _link_tree(source, copy)
            manifest["parts"][part] = os.path.relpath(copy, target)
    elsewhere = {part for part, place in manifest["parts"].items() if place != "."}
    if elsewhere - manifest.get("digests", {}).keys():
        write(target / MANIFEST, json.dumps(manifest, indent=2))  # it names them by place alone
        record_digest(target)
    write(target.parent / LATEST, checkpoint.name)


def _link_tree(source: Path, target: Path, only: tuple[str, ...] = ()) -> None:
    """Make ``target`` hold the files of ``source``, which has to be on the same disk for links."""
    if target.exists():
        return
    target.mkdir(parents=True)
    for file in sorted(source.rglob("*")):
        if file.is_file() and (not only or (file.name in only and file.parent == source)):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.resolve(), copy)  # of the hub's cache the file itself, not the link to it
            except OSError:
                shutil.copy2(file, copy)
