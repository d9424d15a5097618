"""The operations that are told are those that torch counts while a step runs."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_af import model as model_module
from megatron_af.audio import features as features_module
from megatron_af.audio.features import KnownFeatures
from megatron_af.config import Config, LoRAConfig
from megatron_af.data.batch import StepAudio, StepBatch, TextBatch
from megatron_af.flops import Amounts
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.train.flops import answer_amounts, answer_tally, encoder_tally
from megatron_af.train.objectives.answer_learner import AnswerLearner
from megatron_af.train.trainable import select
from tests import tiny
from tests.distributed import run_distributed
from tests.plan.measured import addmm_in_place

LONG = (30, 1, 7, 2, 30, 1)
"""Windows of the clips of a ragged step."""
RELATIVE_ERROR = 0.01


def with_windows(batch: StepBatch[TextBatch], windows: tuple[int, ...]) -> StepBatch[TextBatch]:
    mel_WFM = torch.randn(sum(windows), 1001, 64) * 10 - 40
    return dataclasses.replace(batch, audio=dataclasses.replace(batch.audio, clip_windows=windows, mel_WFM=mel_WFM))


def with_cache(batch: StepBatch[TextBatch], config: Config) -> StepBatch[TextBatch]:
    """All clips but the first and the fifth come from a cache."""
    encoder, windows = config.model.encoder, batch.audio.clip_windows
    found = [
        None if clip in (0, 4) else torch.randn(count, encoder.tokens_per_window, encoder.feature_dim)
        for clip, count in enumerate(windows)
    ]
    assert batch.audio.mel_WFM is not None
    mel = torch.split(batch.audio.mel_WFM, list(windows))
    audio = StepAudio(
        clip_windows=windows,
        owners=batch.audio.owners,
        mel_WFM=torch.cat([mel[0], mel[4]]),
        known=KnownFeatures(keys=("",) * len(windows), found=tuple(found)),
        seconds=batch.audio.seconds,
    )
    return dataclasses.replace(batch, audio=audio)


def count(rank: int, world: int, config: Config, windows: tuple[int, ...], cached: bool, fresh: bool) -> dict[str, Any]:
    stage = config.curriculum["stage"]
    groups = process_groups.initialize(config.parallel, config.seed)
    # torch counts what is computed again; that is no useful work, and is not told.
    model_module.WINDOWS_AT_ONCE = features_module.WINDOWS_AT_ONCE = 10_000
    model = build(config, tiny.VOCABULARY, current_device())
    if not fresh:  # open gates
        tiny.fill(model)
    select(model.named_parameters(), stage)
    learner = AnswerLearner(config, stage, model, groups, torch.device("cpu"))
    batch = tiny.step_batch(0, dp_rank=0, dp_size=1, mp_rank=0, mp_size=1)
    if windows:
        batch = with_windows(batch, windows)
    if cached:
        batch = with_cache(batch, config)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_in_place})
    with sdpa_kernel(SDPBackend.MATH), counter:  # of the fused kernels of a CPU it counts nothing
        learner.forward_backward(batch)
    matrices = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not getattr(parameter, "unused", False)
    ]
    told = learner.flops(batch)
    process_groups.destroy()
    return {"torch": counter.get_total_flops(), "told": told, "matrices": matrices}


SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "all trains": (tiny.ALL, {}),
    "the language model is frozen": (tiny.FROZEN_LM, {}),
    "from a cache": (("transform.*", "added_rows", "lm.*.xattn.*"), {"cached": True}),
    "30 windows, ragged": (tiny.FROZEN_LM, {"windows": LONG}),
    "30 windows, the audio side is frozen": (("lm.*.xattn.*",), {"windows": LONG}),
    "only the end of the encoder": (("encoder.layers.1.*", "lm.*.xattn.*"), {}),
    "only a norm of the encoder's first block": (("encoder.layers.0.blocks.0.norm2.*",), {}),
    "only the language model, gates closed": (("lm.*",), {"fresh": True, "frozen": ("*.xattn.*",)}),
    "only the added rows": (("added_rows",), {}),
    "adapters": (tiny.ADAPTERS, {"lora": tiny.LORA}),
    "adapters alone": (("lm.*.lora.*",), {"lora": LoRAConfig(targets=("linear_proj", "linear_fc2"), rank=5)}),
    "frozen adapters": (("lm.*.xattn.*",), {"lora": tiny.LORA}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_told_is_what_torch_counts(name: str) -> None:
    trainable, changes = SETTINGS[name]
    config = tiny.config(trainable, lora=changes.get("lora"))
    stage = dataclasses.replace(config.curriculum["stage"], frozen=changes.get("frozen", ()))
    config = dataclasses.replace(config, curriculum={"stage": stage})
    flags = (changes.get("windows", ()), changes.get("cached", False), changes.get("fresh", False))
    (found,) = run_distributed(count, 1, config, *flags)
    assert found["told"] == pytest.approx(found["torch"], rel=RELATIVE_ERROR)


@pytest.mark.slow
@pytest.mark.parametrize("vector", ["", "mlp", "residual"])
def test_every_matrix_of_the_model_is_told(vector: str) -> None:
    config = tiny.config(tied=False, interval=2, lora=tiny.LORA)
    encoder = dataclasses.replace(config.model.encoder, vector=vector, vector_dim=32)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder))
    (found,) = run_distributed(count, 1, config, (), False, False)
    no_products = ("relative_position_bias_table", "word_embeddings.weight", "added_rows", "absolute_pos_embed")
    told = answer_tally(config.model, config.curriculum["stage"]).weights
    assert told == {name for name in found["matrices"] if not name.endswith(no_products)}
    assert found["told"] == pytest.approx(found["torch"], rel=RELATIVE_ERROR)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [tiny.ALL, ("lm.position_embeddings.*",), ("lm.decoder.final_layernorm.bias",)])
def test_every_product_of_a_family_with_learnt_positions_is_told(trainable: tuple[str, ...]) -> None:
    config = tiny.config(trainable)
    lm = dataclasses.replace(config.model.lm, family="opt", kv_heads=config.model.lm.heads)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm))
    (found,) = run_distributed(count, 1, config, (), False, False)
    assert found["told"] == pytest.approx(found["torch"], rel=RELATIVE_ERROR)
    told = {name for name in answer_tally(config.model, config.curriculum["stage"]).weights if ".layers." in name}
    assert told == {name for name in found["matrices"] if ".layers." in name and "bias_table" not in name}


def test_ranks_of_a_group_share_the_work() -> None:
    """Clips cut among two ranks are other calls of the transformation layers, and nothing else."""
    config = tiny.config()
    one, two = (tiny.step_batch(0, dp_rank=0, dp_size=1, mp_rank=0, mp_size=size) for size in (1, 2))
    tokens = config.model.encoder.tokens_per_window
    alone, shared = (answer_amounts(tokens, batch.audio, batch.text.rows) for batch in (one, two))
    same = {"clip_tokens": 0.0, "clip_scores": 0.0}
    assert dataclasses.replace(alone, **same) == dataclasses.replace(shared, **same)
    assert shared.clip_tokens == sum(tiny.CLIP_WINDOWS) * tokens


def test_a_frozen_encoder_costs_a_third_of_one_that_trains() -> None:
    config = tiny.config()
    stage = config.curriculum["stage"]
    frozen = dataclasses.replace(stage, frozen=("encoder.*",))
    window = Amounts(windows=1)
    trains, stands = (encoder_tally(config.model, each).of(window) for each in (stage, frozen))
    assert trains == 3 * stands
