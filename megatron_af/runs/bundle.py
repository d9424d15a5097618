"""A release: everything that answering takes, in a folder of its own that later training does not touch.

    release = make_release(config, "long")      # runs/demo/releases/3f2a91c04d7e
      config.yaml  digest.txt  tokenizer  long/checkpoints/{latest,step_…}  sources/…
      retrieval/…  clap/checkpoints/…          where training rows were indexed: to find examples for prompts

A stage's folder belongs to training, which moves it away when its inputs change; the model in production must not
move with it. Files are hard links where the disk has them, so a release takes no space of its own.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from megatron_af.config import Config
from megatron_af.config.loading import to_yaml
from megatron_af.runs.digests import DIGEST_FILE, digest_file, digest_value, record_digest, verify_digest
from megatron_af.runs.paths import LATEST, MANIFEST, latest
from megatron_af.runs.pointers import checkpoint_digest, source_of

CONFIG, TOKENIZER, INDEXES = "config.yaml", "tokenizer", "retrieval"


def make_release(config: Config, stage: str, expected_digest: str = "") -> Path:
    """Release the newest checkpoint of a stage; the same checkpoint again gives the same folder.

    Raises:
        FileNotFoundError: the stage has no checkpoint.
        DigestMismatch: its files, or those of a checkpoint that it takes parts from, are not the recorded ones, or not
            ``expected_digest``. Nothing is written.
    """
    checkpoint = latest(config.stage_folder(stage) / "checkpoints")
    if checkpoint is None:
        raise FileNotFoundError(f"stage {stage} has no checkpoint in {config.stage_folder(stage)}; train it first")
    digests = _verified(checkpoint.resolve(), expected_digest)
    indexes = _indexes(config)
    identity = digests[checkpoint.resolve()]
    if indexes:
        identity = digest_value([identity, *(digest_file(folder / "index.json") for folder in indexes)])
    release = Path(config.output).absolute() / config.name / "releases" / identity[7:19]
    if (release / DIGEST_FILE).is_file():
        verify_digest(release)
        return release
    partial = release.with_name(f"{release.name}.{os.getpid()}.partial")
    _add_checkpoint(checkpoint.resolve(), digests, partial, stage)
    for folder in indexes:
        _link_tree(folder, partial / INDEXES / folder.name)
    hears = latest(config.stage_folder(config.retrieval.stage) / "checkpoints") if indexes else None
    if hears is not None and config.retrieval.stage != stage:
        _add_checkpoint(hears.resolve(), _verified(hears.resolve()), partial, config.retrieval.stage)
    tokenizer = Path(config.data.tokenizer or "none")  # an empty path would be the working folder
    if tokenizer.is_dir():
        _link_tree(tokenizer, partial / TOKENIZER)
    elif tokenizer.is_file():
        _link_tree(tokenizer.parent, partial / TOKENIZER, only=(tokenizer.name, "tokenizer_config.json"))
        (partial / TOKENIZER / tokenizer.name).rename(partial / TOKENIZER / "tokenizer.json")
    tracking = replace(config.tracking, enabled=False)
    # Wherever it will be served from, examples come from the folder they were indexed in.
    root = config.data.root if "://" in config.data.root else str(Path(config.data.root).absolute())
    kept = replace(config, stage=stage, tracking=tracking, data=replace(config.data, root=root))
    (partial / CONFIG).write_text(to_yaml(kept))
    record_digest(partial)
    partial.replace(release)
    return release


def _indexes(config: Config) -> list[Path]:
    """Folders of the neighbour indexes that were built (``retrieval/index.py``)."""
    if not config.retrieval.stage:
        return []
    return sorted(file.parent for file in (Path(config.output) / config.name / INDEXES).glob("*/index.json"))


def _verified(checkpoint: Path, expected_digest: str = "") -> dict[Path, str]:
    """Digest of every folder that holds weights of a checkpoint, after a look at the files."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    digests = {
        folder: checkpoint_digest(folder)
        for folder in {checkpoint, *(source_of(checkpoint, part) for part in manifest["parts"])}
    }
    for folder, digest in digests.items():
        verify_digest(folder, expected_digest or digest if folder == checkpoint else digest)
    return digests


def _add_checkpoint(checkpoint: Path, digests: dict[Path, str], partial: Path, stage: str) -> None:
    """Link a checkpoint, and those it takes parts from, into a release that is being made."""
    target = partial / stage / "checkpoints" / checkpoint.name
    _link_tree(checkpoint, target)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for part in manifest["parts"]:
        source = source_of(checkpoint, part)
        if source != checkpoint:
            copy = partial / "sources" / digests[source][7:19]
            _link_tree(source, copy)
            manifest["parts"][part] = os.path.relpath(copy, target)
    (target / MANIFEST).unlink()  # a link to the original's
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2))
    (target.parent / LATEST).write_text(checkpoint.name)


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
                os.link(file, copy)
            except OSError:
                shutil.copy2(file, copy)
