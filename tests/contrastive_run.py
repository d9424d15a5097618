"""A tiny contrastive stage: its configuration, and a whole run with recordings and captions.

file = write_run(tmp_path)      # stages clap, and align that takes its encoder over
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_af.config import ClapConfig, Config, ContrastiveConfig
from megatron_af.config.loading import to_yaml
from tests import tiny
from tests.data.toy import toy_config, toy_rows, write_manifest

CLAP = ClapConfig(text_tower="", text_hidden=16, text_layers=1, text_heads=2, joint_dim=8, learn_temperature=True)


def config(contrastive: ContrastiveConfig | None = None, **parallel: Any) -> Config:
    base = tiny.config(**parallel)
    stage = replace(
        base.curriculum["stage"],
        objective="contrastive",
        contrastive=contrastive or ContrastiveConfig(symmetric=True),  # all of the loss
        trainable=("encoder.*", "clap.*"),
        global_batch_samples=6,
    )
    return replace(base, curriculum={"stage": stage}, model=replace(base.model, clap=CLAP))


def write_run(folder: Path) -> Path:
    """The YAML file of a run below ``folder``: recordings with captions, a contrastive stage, and one that takes its
    encoder over."""
    toy = toy_config(folder)
    root = Path(toy.data.root)
    rows = [replace(row, negatives=(f"no {row.id}",)) for row in toy_rows(root, "c", 16) if len(row.clips) == 1]
    captions = write_manifest(root, "c", rows)
    settings = config()
    clap = replace(settings.curriculum["stage"], blend={"c": 1.0}, global_batch_samples=4, steps=6)
    align = tiny.config(tiny.FROZEN_LM).curriculum["stage"]
    align = replace(align, blend={"a": 1.0}, entry={"encoder": "clap"}, steps=2, frozen=("encoder.*",))
    model = replace(
        settings.model, front_end=toy.model.front_end, lm=replace(settings.model.lm, vocab=257, max_positions=512)
    )
    whole = replace(
        toy,
        model=model,
        data=replace(toy.data, datasets={**toy.data.datasets, "c": captions}),
        curriculum={"clap": clap, "align": align},
        tracking=replace(toy.tracking, enabled=False),
        stage="",
        log_every_steps=1,
    )
    (folder / "run.yaml").write_text(to_yaml(whole))
    return folder / "run.yaml"
