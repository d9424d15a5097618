"""Reading a text piece by piece with a cache gives the logits that reading it at once gives."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megatron_af.config import Config
from megatron_af.data.batch import AudioKeys, TextRows
from megatron_af.decoder.cache import CachedAudio, DecoderCache, HeardAudio
from megatron_af.inference.reading import audio_keys, heard_audio
from megatron_af.model import AudioFront, build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from tests import tiny
from tests.distributed import run_distributed
from tests.inference.prompts import prompts, tokenizer

STEPS = 6
LEAVES = 2
"""The step before which the first row leaves the batch."""
PIECES = (3, 1, 2)
"""Tokens that are read in one call."""


def part(rows: TextRows, begin_B: Tensor, length: int) -> TextRows:
    """The positions from ``begin_B`` on, of each row."""
    place_BS = begin_B[:, None] + torch.arange(length)
    tensors = {name: x.gather(1, place_BS) for name, x in vars(rows).items() if isinstance(x, Tensor)}
    return replace(rows, **tensors)


def differences(rank: int, world_size: int, config: Config) -> list[float]:
    """Of the logits behind the prompts and behind each of the answers' words, relative to the largest; of the same
    words read in pieces of several."""
    groups.initialize(config.parallel, 0)
    model = build(config, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    front, (decoder,) = model.front, model.chunks
    assert isinstance(front, AudioFront)
    front.eval(), decoder.eval()
    tokens, chosen = tokenizer(), [0, 1, 2, 3, 1]  # two rows hear the same
    (asked,), batch = prompts(tokens, chosen).text.rows, prompts(tokens, chosen, more=STEPS)
    (whole,), row_B = batch.text.rows, torch.arange(len(chosen))
    found = []
    with torch.no_grad():
        wanted_BSV = decoder.logits(whole, audio_keys(front, batch.audio, whole.clips), front.added_rows)
        length_B = (asked.segment_BS >= 0).sum(1)
        cache = DecoderCache(heard_audio(front, batch.audio, whole.clips))
        assert cache.heard.tokens_LUH.shape[1] == 4
        got_BV = decoder.extend(asked, front.added_rows, cache, position_B=length_B - 1)
        pieces, place_B = cache.copy(), length_B
        for piece in PIECES:
            got_BSV = decoder.extend(part(whole, place_B, piece), front.added_rows, pieces)
            want_BSV = torch.stack([wanted_BSV[b, at : at + piece] for b, at in enumerate(place_B.tolist())])
            found.append(float((got_BSV - want_BSV).abs().max() / wanted_BSV.abs().max()))
            place_B = place_B + piece
        for step in range(STEPS + 1):
            found.append(float((got_BV - wanted_BSV[row_B, length_B - 1 + step]).abs().max() / wanted_BSV.abs().max()))
            if step == LEAVES:
                cache.select([1, 2, 3, 4])
                assert cache.heard.tokens_LUH.shape[1] == 3, "nobody hears the first recording any more"
                whole = part(whole, torch.zeros(len(chosen), dtype=torch.int64), whole.ids_BS.shape[1])
                whole = replace(whole, **{n: x[1:] for n, x in vars(whole).items() if isinstance(x, Tensor)})
                wanted_BSV, length_B, row_B = wanted_BSV[1:], length_B[1:], row_B[:-1]
            if step < STEPS:
                newest = part(whole, length_B + step, 1)
                decoder.config.apply_rope_fusion = True  # which nobody could compute here
                got_BV = decoder.extend(newest, front.added_rows, cache, position_B=torch.zeros_like(length_B))
                assert decoder.config.apply_rope_fusion, "reading a text is fused as before"
                decoder.config.apply_rope_fusion = False
    return found


FAMILIES = {"qwen2": {}, "opt": {"family": "opt", "kv_heads": 4, "max_positions": 64}}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tensor", [1, 2])
def test_what_is_read_in_pieces_is_what_the_whole_text_gives(family: str, tensor: int) -> None:
    config = tiny.config(tensor=tensor)
    lm = replace(config.model.lm, **FAMILIES[family])  # type: ignore[arg-type]
    config = replace(config, model=replace(config.model, lm=lm))
    for found in run_distributed(differences, tensor, config):
        assert len(found) == len(PIECES) + STEPS + 1 and max(found) < 1e-5, found


def rows(lengths: list[int]) -> TextRows:
    segment_BS = torch.full((len(lengths), max(lengths)), -1)
    for b, length in enumerate(lengths):
        segment_BS[b, :length] = 0
    other_BS = torch.zeros_like(segment_BS)
    return TextRows(
        ids_BS=other_BS,
        labels_BS=other_BS,
        segment_BS=segment_BS,
        first_audio_BS=other_BS,
        last_audio_BS=other_BS,
        dataset_BS=other_BS,
        clips=((),) * len(lengths),
    )


def silent(recordings: list[int]) -> DecoderCache:
    keys = AudioKeys(
        tokens_LBD=torch.zeros(3, max(recordings) + 1, 2), audio_of_BL=torch.zeros(max(recordings) + 1, 3)
    )
    return DecoderCache(HeardAudio.of(keys, recordings))


def test_one_token_of_rows_of_one_length_needs_no_mask() -> None:
    cache, host = silent([0, 1]), torch.device("cpu")
    assert cache.begin(rows([4, 4]), torch.float32, host)[0].mask_B1SL is None, "a text from its beginning"
    text, _ = cache.begin(rows([1, 1]), torch.float32, host)
    assert text.mask_B1SL is None and text.place_BS.tolist() == [[4], [4]] and text.longest == 5
    cache = silent([0, 1])
    cache.begin(rows([1, 2]), torch.float32, host)
    text, _ = cache.begin(rows([2, 1]), torch.float32, host)
    assert text.mask_B1SL is not None
    assert text.mask_B1SL[:, 0].isfinite().int().tolist() == [[[1, 1, 0, 0], [1, 1, 1, 0]], [[1, 1, 1, 0], [1] * 4]]
    assert cache.read_B.tolist() == [3, 3]


def test_rows_of_a_recording_are_queries_of_one_row() -> None:
    audio = CachedAudio.of(silent([1, 0, 1, 1]), None)
    x_SBH = torch.arange(2 * 4 * 3).view(2, 4, 3) + 1
    folded = audio.fold(x_SBH)
    assert folded.shape == (6, 2, 3), "two positions of three rows"
    assert torch.equal(audio.unfold(folded), x_SBH)
    assert folded[:, 0].any(1).tolist() == [True, False, False, True, False, False]
    assert CachedAudio.of(silent([0, 1]), None).fold(x_SBH[:, :2]).data_ptr() == x_SBH.data_ptr()
