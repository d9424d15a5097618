"""The public code's way gives this project's logits, and projects the audio anew for every token."""

from typing import Any

import pytest
import torch

from megatron_af.bench.generate import Decoding
from megatron_af.bench.public_code import PublicCode
from megatron_af.config import ParallelConfig
from megatron_af.data.batch import AudioKeys
from megatron_af.decoder.cache import DecoderCache, HeardAudio
from megatron_af.parallel import groups
from tests import tiny
from tests.distributed import run_distributed


def both(rank: int, world_size: int, tied: bool, interval: int) -> Any:
    groups.initialize(ParallelConfig(), 0)
    decoding = Decoding(tiny.config(tied=tied, interval=interval))
    keys: AudioKeys = decoding._keys(1, 2)
    public: PublicCode = decoding._public
    calls = []
    for layer in public.model.layers:
        if layer.audio_attention is not None:
            layer.audio_attention.k_proj.register_forward_hook(lambda *_: calls.append(1))
    cache, prompt = DecoderCache(HeardAudio.of(keys, [0])), decoding._prompt(1)
    found = []
    with torch.inference_mode():
        theirs = public.begin(prompt, keys.tokens_LBD)
        ours = decoding._lm.extend(
            decoding._rows(prompt), decoding._added, cache, position_B=torch.tensor([prompt.shape[1] - 1])
        )
        for token in (3, 90, 5):  # 90 is an added one
            found.append(float((theirs[:, :94] - ours[:, :94]).abs().max()))
            theirs = public.next(torch.tensor([[token]]))
            rows = decoding._rows(torch.tensor([[token]]))
            ours = decoding._lm.extend(rows, decoding._added, cache, position_B=torch.tensor([0]))
        spread = float(ours[:, :94].std())
    return [*found, float((theirs[:, :94] - ours[:, :94]).abs().max())], spread, len(calls)


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "interval"), [(True, 1), (False, 2)])
def test_the_same_logits(tied: bool, interval: int) -> None:
    ((apart, spread, calls),) = run_distributed(both, 1, tied, interval)
    assert max(apart) < 1e-4 * spread, (apart, spread)
    assert calls == 4 * 4 // interval, "the prompt and three tokens, in every block"
