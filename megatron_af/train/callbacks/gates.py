"""How far the gates are open: tanh of every gate by global layer, in the record of every logged step."""

from typing import TYPE_CHECKING

import torch.distributed as dist

from megatron_af.train.callbacks.base import Callback, Record

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer


class Gates(Callback):
    """``gate_attn/<layer>`` and ``gate_ffn/<layer>``, gathered from the pipeline stages every ``every`` steps."""

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        if trainer.step % self._every and trainer.step != trainer.stage.steps:
            return
        local = {}
        for name, parameter in trainer.model.named_parameters():
            if ".xattn.gate_" in name:
                layer, gate = name.split(".layers.")[1].split(".")[0], name.rsplit(".", 1)[1]
                local[f"{gate}/{layer}"] = parameter.detach().float().tanh().item()
        stages: list[Record] = [{} for _ in range(trainer.groups.model_size)]
        dist.all_gather_object(stages, local, group=trainer.groups.model)
        for stage in stages:
            record |= stage
