"""What a stage's result depends on, as digests: the same inputs give the same run, different ones a new run.

    inputs = stage_inputs(config, "align")       # {"config": "sha256:…", "data/clotho": …, "parent/encoder": …}
    identity = digest_value(inputs)
"""

import dataclasses
from pathlib import Path

from megatron_af.config import Config
from megatron_af.data.shards import rows_file
from megatron_af.data.storage import DataRoot
from megatron_af.runs.digests import DIGEST_FILE, digest_file, digest_tree, digest_value, record_digest, recorded_digest
from megatron_af.runs.paths import resolve_entry
from megatron_af.runs.presence import how_to_make

NO_INFLUENCE_ON_WEIGHTS = ("evaluation", "exit_gate")
"""Fields of a stage that may change without training it again."""


def stage_inputs(config: Config, stage: str) -> dict[str, str]:
    """Digest of everything that the stage's weights follow from, by name.

    How the model lies on the ranks is not among it: a stage may be resumed in another layout.

    Raises ``FileNotFoundError`` for a manifest, tokenizer or parent checkpoint that is not there.
    """
    settings = dataclasses.asdict(config.curriculum[stage])
    follows_from = {"global_batch_samples": settings["batch_tokens"], "steps": settings["passes"]}  # sizes.py
    for name in (*NO_INFLUENCE_ON_WEIGHTS, *(name for name, origin in follows_from.items() if origin)):
        del settings[name]
    inputs = {"config": digest_value([settings, config.model, config.seed, config.precision])}
    for dataset in sorted(config.curriculum[stage].blend):
        inputs[f"data/{dataset}"] = digest_file(dataset_index(config, dataset))
    tokenizer = Path(config.data.tokenizer)
    if config.data.tokenizer and tokenizer.exists():
        inputs["tokenizer"] = digest_tree(tokenizer) if tokenizer.is_dir() else digest_file(tokenizer)
    for part, origin in sorted(config.curriculum[stage].entry.items()):
        checkpoint = resolve_entry(dataclasses.replace(config, stage=stage), origin)
        inputs[f"parent/{part}"] = checkpoint_digest(checkpoint)
    return inputs


def evaluation_inputs(config: Config, stage: str) -> str:
    """What a stage is measured on and how, in words and as a digest; raises what :func:`dataset_index` raises."""
    names = config.curriculum[stage].evaluation
    rows = {name: digest_file(dataset_index(config, name)) for name in names}
    return f"{', '.join(names)} ({digest_value([rows, config.evaluation])})"


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


def checkpoint_digest(checkpoint: Path) -> str:
    """Digest of a checkpoint's files, written beside them the first time it is asked for."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}; correct the stage's entry")
    if checkpoint.is_file():
        return digest_file(checkpoint)
    return recorded_digest(checkpoint) if (checkpoint / DIGEST_FILE).is_file() else record_digest(checkpoint)
