"""Rows of 1 to 8 audios, of none, packed, of ragged windows: what each token hears and costs, against a slow statement.

From rows to losses by the product's own way: templates, packing, labels, who hears what, masks, decoder.
"""

from dataclasses import dataclass

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from megatron_af.audio.encode_ahead import key_layout
from megatron_af.config import Config
from megatron_af.data.answer_texts import packed_row, text_batch
from megatron_af.data.batch import AudioKeys, TextRows
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.data.sample_source import Sample
from megatron_af.data.templates import STYLES, RowText, render
from megatron_af.decoder.lm import AudioLM
from megatron_af.parallel.global_state import gather_global, load_global
from megatron_af.text.tokenizer import Tokenizer
from tests.decoder.slow_statement import Token, losses_of, said
from tests.decoder.toy import AUDIO_DIM, open_gates, single_process_lm, toy_config
from tests.distributed import run_distributed
from tests.text.toy_tokenizer import toy_base

PER_WINDOW = 2
"""Audio tokens."""
MICRO_BATCH = 2
WORDS = st.text("abcd", min_size=1, max_size=4)


@dataclass(frozen=True)
class Layout:
    """Rows of text, each with the samples packed into it; what a sample hears, as places in ``windows``."""

    style: str
    immediate: bool
    windows: tuple[int, ...]
    rows: tuple[tuple[tuple[Row, tuple[int, ...]], ...], ...]


@st.composite
def samples(draw: st.DrawFn, clips: int) -> tuple[Row, tuple[int, ...]]:
    template = draw(st.sampled_from(["single", "interleaved", "interleaved_random", "dialogue"]))
    interleaved = template.startswith("interleaved")
    fewest, most = (1, 8) if interleaved else (0, 3)
    heard = draw(st.lists(st.integers(0, clips - 1), min_size=fewest, max_size=most, unique=True))
    count = len(heard) if interleaved else draw(st.integers(1, 3))
    questions = tuple(Question(prompt=draw(WORDS), output=draw(WORDS)) for _ in range(count))
    files = tuple(Clip(path=f"{clip}.wav", duration=1.0) for clip in heard)
    return Row(id="row", clips=files, questions=questions, template=template), tuple(heard)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    windows = draw(st.lists(st.integers(1, 4), min_size=8, max_size=8))
    rows = draw(st.lists(st.lists(samples(len(windows)), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3))
    style = draw(st.sampled_from(sorted(STYLES)))
    return Layout(style, draw(st.booleans()), tuple(windows), tuple(rows))


def tokenizer_of(style: str) -> Tokenizer:
    """Of bytes; that of AF1's style has OPT's special tokens."""
    base = toy_base()
    if style == "af1":
        base.add_special_tokens(["<pad>", "</s>"])
    return Tokenizer(base)


def micro_batches(layout: Layout, tokenizer: Tokenizer) -> list[TextRows]:
    style, packed = STYLES[layout.style], []
    for row in layout.rows:
        texts = [Sample[RowText](row=r, dataset=0, text=render(r, tokenizer, 4096, style=style)) for r, _ in row]
        packed.append(packed_row(texts, [heard for _, heard in row]))
    batch = text_batch(packed, tokenizer, MICRO_BATCH, length_multiple=1, immediate=layout.immediate)
    return list(batch.rows)


def keys_of(layout: Layout, rows: TextRows, clips: list[torch.Tensor]) -> AudioKeys:
    starts = np.cumsum([0, *(len(clip) for clip in clips)]).tolist()
    index_BL, audio_of_BL = key_layout(rows.clips, layout.windows, dict(enumerate(starts)), PER_WINDOW)
    return AudioKeys(tokens_LBD=torch.cat(clips)[index_BL.t()], audio_of_BL=audio_of_BL)


def config_of(tokenizer: Tokenizer) -> Config:
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "kv_heads": 2, "ffn": 24, "max_positions": 512}
    lm = {"family": "opt", "norm_eps": 1e-5, "vocab": tokenizer.first_added_id, **sizes}
    return toy_config(lm=lm, cross_attention={"interval": 1, "heads": 2, "head_dim": 4})


def agrees(layout: Layout, tokenizer: Tokenizer, lm: AudioLM, config: Config) -> None:
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(count * PER_WINDOW, AUDIO_DIM, generator=generator) for count in layout.windows]
    rows_NH = torch.randn(tokenizer.num_added, config.model.lm.hidden, generator=generator)
    whole = gather_global([lm], None)
    weights = {name: tensor.double().numpy() for name, tensor in whole.items()}
    slow_clips = [clip.double().numpy() for clip in clips]
    batches = micro_batches(layout, tokenizer)
    for number, rows in enumerate(batches):
        keys = keys_of(layout, rows, clips)
        with torch.no_grad():
            losses = lm(rows, keys, rows_NH).tolist()
        expected: list[float] = []
        for b, row in enumerate(layout.rows[number * MICRO_BATCH :][:MICRO_BATCH]):
            place = first_audio = 0
            for sample, heard in row:
                for tokens in said(sample, tokenizer, STYLES[layout.style], immediate=layout.immediate):
                    same_text_and_audio(rows, keys, b, place, tokens, first_audio)
                    place += len(tokens)
                    audio = [slow_clips[clip] for clip in heard]
                    expected += losses_of(tokens, audio, weights, rows_NH.double().numpy(), config.model)
                first_audio += len(heard)
        assert losses == pytest.approx(expected, rel=1e-4, abs=1e-5)


def same_text_and_audio(
    rows: TextRows, keys: AudioKeys, b: int, place: int, tokens: list[Token], first_audio: int
) -> None:
    for offset, token in enumerate(tokens):
        s = place + offset
        assert rows.ids_BS[b, s] == token.id
        audio_of_L = keys.audio_of_BL[b]
        visible_L = (audio_of_L >= rows.first_audio_BS[b, s]) & (audio_of_L <= rows.last_audio_BS[b, s])
        visible_L &= audio_of_L >= 0
        assert sorted(set(audio_of_L[visible_L].tolist())) == [first_audio + audio for audio in token.hears]


def random_layouts(rank: int, world_size: int) -> None:
    models = {}
    for style in STYLES:
        tokenizer = tokenizer_of(style)
        config = config_of(tokenizer)
        lm = single_process_lm(config, added=tokenizer.num_added)
        load_global([lm], None, lambda name, shape: 2 * open_gates(name, shape))
        models[style] = (tokenizer, lm, config)

    @hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None, report_multiple_bugs=False)
    @hypothesis.given(layouts())
    def run(layout: Layout) -> None:
        agrees(layout, *models[layout.style])

    run()


@pytest.mark.slow
def test_random_layouts_hear_and_cost_what_is_stated() -> None:
    run_distributed(random_layouts, 1, timeout=240)
