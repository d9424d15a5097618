"""Configurations of toy size whose plan is compared with what is allocated."""

import dataclasses
from typing import Any

from megatron_af.config import Config, DatasetConfig
from tests import tiny

ALIGN = ("transform.*", "added_rows", "lm.*.xattn.*")
WHOLE_LM = ("transform.*", "added_rows", "lm.*")


def sized(config: Config, *, wide: bool = True, **encoder: Any) -> Config:
    """Wide enough that neither side of the model is lost beside the other."""
    lm = config.model.lm
    if wide:
        lm = dataclasses.replace(lm, hidden=256, heads=8, ffn=512, max_positions=128)
    model = dataclasses.replace(config.model, lm=lm, encoder=dataclasses.replace(config.model.encoder, **encoder))
    return dataclasses.replace(config, model=model)


def of_family(config: Config, family: str) -> Config:
    lm = dataclasses.replace(config.model.lm, family=family, kv_heads=config.model.lm.heads)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm))


def runnable(**layout: Any) -> Config:
    """One that training takes, too."""
    config = tiny.config(**layout)
    datasets = {name: DatasetConfig(manifest=f"{name}.jsonl") for name in config.curriculum["stage"].blend}
    model = dataclasses.replace(config.model, lm=dataclasses.replace(config.model.lm, max_positions=1024))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=datasets), model=model)
