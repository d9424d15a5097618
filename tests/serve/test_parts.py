"""Parts of a checkpoint, in a process of one or of several."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_af.config import Config, ParallelConfig
from megatron_af.decoder.int8 import Int8Linear
from megatron_af.runs.paths import latest
from megatron_af.serve.parts import join_process_group, load_embedder, load_listener
from tests.distributed import run_distributed
from tests.trained_run import trained_run

pytestmark = pytest.mark.slow


def loaded(rank: int, world_size: int, config: Config) -> dict[str, Any]:
    dist.destroy_process_group()
    join_process_group()
    joined = dist.get_world_size()
    join_process_group()  # a second model of this process
    found: dict[str, Any] = {"joined": joined}
    answering = dataclasses.replace(config, stage="stage")
    checkpoint = latest(config.stage_folder("stage") / "checkpoints")
    assert checkpoint is not None
    for in_int8 in (False, True):
        listener = load_listener(answering, checkpoint, ParallelConfig(), in_int8=in_int8)
        modules = [module for chunk in listener.model.chunks for module in chunk.modules()]
        found[f"int8 {in_int8}"] = sum(isinstance(module, Int8Linear) for module in modules)
        listener.close()
    embedding = dataclasses.replace(config, stage="clap")
    place = latest(config.stage_folder("clap") / "checkpoints")
    assert place is not None
    embedder = load_embedder(embedding, place)
    vectors = embedder.texts(["w1 w2", "w3"])
    found["norms"] = torch.linalg.vector_norm(vectors, dim=-1).tolist()
    embedder.close()
    return found


def test_what_answers_and_what_embeds_are_loaded(tmp_path: Path) -> None:
    (found,) = run_distributed(loaded, 1, trained_run(tmp_path), timeout=240)
    assert found["joined"] == 1
    assert found["int8 False"] == 0 < found["int8 True"]
    assert found["norms"] == pytest.approx([1.0, 1.0])
