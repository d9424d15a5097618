"""Decoding token by token with a cache gives the logits that reading the whole text at once gives."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_af.config import Config
from megatron_af.data.batch import AudioKeys, TextRows
from megatron_af.decoder.cache import DecoderCache
from megatron_af.inference.greedy import audio_keys
from megatron_af.model import AudioFront, build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from tests import tiny
from tests.distributed import run_distributed
from tests.inference.prompts import prompts, tokenizer

pytestmark = pytest.mark.slow

STEPS = 6
LEAVES = 2
"""The step before which the first row leaves the batch."""


def each(rows: TextRows, change: Any, clips: tuple[tuple[int, ...], ...]) -> TextRows:
    tensors = {name: change(x) for name, x in vars(rows).items() if isinstance(x, Tensor)}
    return replace(rows, **tensors, clips=clips)


def differences(rank: int, world_size: int, config: Config) -> list[float]:
    """Of the logits behind the prompts and behind each of the answers' words, relative to the largest."""
    groups.initialize(config.parallel, 0)
    model = build(config, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    front, (decoder,) = model.front, model.chunks
    assert isinstance(front, AudioFront)
    front.eval(), decoder.eval()
    tokens, chosen = tokenizer(), [0, 1, 2, 3]
    (asked,), batch = prompts(tokens, chosen).text.rows, prompts(tokens, chosen, more=STEPS)
    (whole,) = batch.text.rows
    found = []
    with torch.no_grad():
        keys = audio_keys(front, batch.audio, whole)
        wanted_BSV = decoder.logits(whole, keys, front.added_rows)
        length_B = (asked.segment_BS >= 0).sum(1)
        cache = DecoderCache(asked.ids_BS.shape[1] + STEPS)
        got_BV = decoder.logits(asked, keys, front.added_rows, position_B=length_B - 1, cache=cache)
        row_B = torch.arange(len(chosen))
        for step in range(STEPS + 1):
            found.append(float((got_BV - wanted_BSV[row_B, length_B - 1 + step]).abs().max() / wanted_BSV.abs().max()))
            if step == LEAVES:
                cache.keep(row_B[1:])
                whole = each(whole, lambda x: x[1:], whole.clips[1:])
                keys = AudioKeys(tokens_LBD=keys.tokens_LBD[:, 1:], audio_of_BL=keys.audio_of_BL[1:])
                wanted_BSV, length_B, row_B = wanted_BSV[1:], length_B[1:], row_B[:-1]
            if step < STEPS:
                place_B = length_B + step
                newest = each(whole, lambda x, place_B=place_B: x.gather(1, place_B[:, None]), whole.clips)
                decoder.config.apply_rope_fusion = True  # which nobody could compute here
                got_BV = decoder.step(newest, keys, front.added_rows, place_B, cache)
                assert decoder.config.apply_rope_fusion, "reading a text is fused as before"
                decoder.config.apply_rope_fusion = False
    return found


FAMILIES = {"qwen2": {}, "opt": {"family": "opt", "kv_heads": 4, "max_positions": 64}}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tensor", [1, 2])
def test_a_cached_step_is_what_the_whole_text_gives(family: str, tensor: int) -> None:
    config = tiny.config(tensor=tensor)
    lm = replace(config.model.lm, **FAMILIES[family])  # type: ignore[arg-type]
    config = replace(config, model=replace(config.model, lm=lm))
    for found in run_distributed(differences, tensor, config):
        assert len(found) == STEPS + 1 and max(found) < 1e-5, found


def test_rows_of_one_length_need_no_mask() -> None:
    cache = DecoderCache(8)
    host = torch.device("cpu")
    assert cache.begin_step(torch.tensor([3, 3]), host, torch.float32).mask_B1SL is None
    mask_B1SL = cache.begin_step(torch.tensor([1, 2]), host, torch.float32).mask_B1SL
    assert mask_B1SL is not None and mask_B1SL[:, 0, 0].isfinite().tolist() == [[True, True, False], [True] * 3]
