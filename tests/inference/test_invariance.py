"""A request gets the same greedy answer alone, beside any neighbours, in any order, padded, packed and cached."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_af.data.batch import AudioKeys
from megatron_af.data.collate import PackedRow, Segment, collate
from megatron_af.decoder.cache import HeardAudio
from megatron_af.inference.answers import write
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.reading import Reading
from tests.distributed import run_distributed
from tests.inference.prompts import tiny_model, tokenizer

pytestmark = pytest.mark.slow

CASES, PROMPTS, NEW, MOST = 10_000, 150, 4, 16
NEAR = 1e-4
"""Where the two likeliest tokens are closer than this, rounding may decide."""


def draw(generator: torch.Generator, least: int, most: int) -> int:
    return int(torch.randint(least, most + 1, (), generator=generator))


class Pool:
    """Random prompts with the audio tokens of 0 to 3 clips of 1 to 3 windows."""

    def __init__(self, generator: torch.Generator) -> None:
        self.model, self.tokens = tiny_model(), tokenizer()
        width = self.model.front.feature_dim
        self.clips = [
            [torch.randn(draw(generator, 1, 3) * 4, width, generator=generator) for _ in range(draw(generator, 0, 3))]
            for _ in range(PROMPTS)
        ]
        self.ids = [
            [self.tokens.audio_id] * len(clips)
            + torch.randint(1, 89, (draw(generator, 1, 20),), generator=generator).tolist()
            + [self.tokens.separator_id]
            for clips in self.clips
        ]

    def keys(self, chosen: list[int]) -> AudioKeys:
        longest = max(1, *(sum(map(len, self.clips[number])) for number in chosen))
        width = self.model.front.feature_dim
        tokens_LBD = torch.randn(longest, len(chosen), width)  # what stands at padding must not matter
        audio_of_BL = torch.full((len(chosen), longest), -1, dtype=torch.int32)
        for b, number in enumerate(chosen):
            end = 0
            for audio, clip in enumerate(self.clips[number]):
                begin, end = end, end + len(clip)
                tokens_LBD[begin:end, b], audio_of_BL[b, begin:end] = clip, audio
        return AudioKeys(tokens_LBD=tokens_LBD, audio_of_BL=audio_of_BL)

    def answers(self, chosen: list[int]) -> list[tuple[int, ...]]:
        distinct = list(dict.fromkeys(chosen))
        heard = HeardAudio.of(self.keys(distinct), [distinct.index(number) for number in chosen])
        decodings = [Decoding(max_new_tokens=NEW, logprobs=2)] * len(chosen)
        reading = Reading(self.model, self.tokens, heard)
        said = write(reading, [self.ids[number] for number in chosen], decodings, self.tokens)
        self.gaps = [
            min((token.top[0][1] - token.top[1][1] for token in answer.scores), default=1.0) for answer in said
        ]
        return [answer.tokens for answer in said]

    def packed(self, chosen: list[int]) -> tuple[Tensor, AudioKeys, list[int]]:
        """Logits behind all prompts, side by side in one row."""
        apart, segments, clips = self.keys(chosen), [], 0
        pieces, audio_of = [], []
        for b, number in enumerate(chosen):
            count = len(self.clips[number])
            segments.append(Segment(ids=self.ids[number], first_audio=clips, num_audios=count))
            own_L = apart.audio_of_BL[b] >= 0
            pieces.append(apart.tokens_LBD[own_L, b])
            audio_of.append(apart.audio_of_BL[b, own_L] + clips)
            clips += count
        tokens_LBD = torch.cat([*pieces, torch.zeros(1, apart.tokens_LBD.shape[2])])[:, None].requires_grad_()
        keys = AudioKeys(tokens_LBD=tokens_LBD, audio_of_BL=torch.cat([*audio_of, torch.tensor([-1])])[None].int())
        row = PackedRow(segments=tuple(segments), clips=tuple(range(clips)))
        rows = collate([row], self.tokens, row.num_tokens)
        (decoder,) = self.model.chunks
        ends = torch.tensor([len(segment.ids) for segment in segments]).cumsum(0) - 1
        logits_NV = decoder.logits(rows, keys, self.model.front.added_rows)[0, ends]
        return logits_NV, keys, [len(piece) for piece in pieces]


def crowds(rank: int, world_size: int) -> Any:
    generator = torch.Generator().manual_seed(7)
    pool = Pool(generator)
    alone, near = [], set()
    for number in range(PROMPTS):
        alone += pool.answers([number])
        if pool.gaps[0] < NEAR:
            near.add(number)
    cases, other, packed_other = 0, [], []
    while cases < CASES:
        chosen = torch.randint(PROMPTS, (draw(generator, 2, MOST),), generator=generator).tolist()
        for number, answer in zip(chosen, pool.answers(chosen), strict=True):
            cases += 1
            if answer != alone[number] and number not in near:
                other.append((chosen, number))
        if cases % 7 == 0:
            with torch.no_grad():
                logits_NV = pool.packed(chosen)[0]
            logits_NV[:, pool.tokens.never_written(logits_NV.shape[-1])] = -torch.inf
            for number, token in zip(chosen, logits_NV.argmax(-1).tolist(), strict=True):
                ended = token in (pool.tokens.eos_id, pool.tokens.end_of_chunk_id)
                if (() if ended else (token,)) != alone[number][:1] and number not in near:
                    packed_other.append((chosen, number))
    return cases, other, packed_other, len(near), len(set(alone))


def test_ten_thousand_random_crowds_change_no_answer() -> None:
    ((cases, other, packed_other, near, distinct),) = run_distributed(crowds, 1, timeout=300)
    assert cases >= CASES
    assert not other and not packed_other
    assert near <= PROMPTS // 50 and distinct > PROMPTS // 2, (near, distinct)


def gradients(rank: int, world_size: int) -> Any:
    pool = Pool(torch.Generator().manual_seed(3))
    chosen = [number for number in range(PROMPTS) if pool.clips[number]][:4]
    logits_NV, keys, lengths = pool.packed(chosen)
    (gradient_LBD,) = torch.autograd.grad(logits_NV[1].sum(), keys.tokens_LBD)
    return [float(piece.abs().max()) for piece in gradient_LBD[:-1].split(lengths)]


def test_a_neighbours_audio_has_no_gradient_at_all() -> None:
    ((first, asked, third, fourth),) = run_distributed(gradients, 1)
    assert asked > 0
    assert first == third == fourth == 0.0
