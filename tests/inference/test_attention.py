"""What is drawn is what the fused kernel computes, at the time where it happens."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tokenizers
import torch
from tokenizers.models import WordLevel

from megatron_af.audio.htsat import HTSAT
from megatron_af.config import Config, DataConfig, EncoderConfig, FrontEndConfig, ModelConfig
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.decoder.cross_attention import AudioCrossAttention
from megatron_af.decoder.stretches import Stretches
from megatron_af.inference.attention import attention_weights, token_seconds
from megatron_af.inference.looks import fixed_samples
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.paths import Resume
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.objectives.answer import Answer
from tests import tiny
from tests.distributed import run_distributed


@pytest.mark.parametrize("patch", [4, 16])
def test_a_click_is_in_the_token_of_its_second(patch: int) -> None:
    """A change of the sound changes most the token whose time ``token_seconds`` says it is."""
    encoder = EncoderConfig(
        embed_dim=16, depths=(1, 1, 1, 1) if patch == 4 else (1, 1), heads=(2, 2, 2, 2) if patch == 4 else (2, 2),
        patch_size=patch, fusion=False, classes=0, stft_weights=False, drop_path=0.0,
    )  # fmt: skip
    model = ModelConfig(front_end=FrontEndConfig(), encoder=encoder)
    torch.manual_seed(0)
    htsat = HTSAT(model.front_end, encoder).eval()
    seconds = token_seconds(model, windows=2)
    assert len(seconds) == 2 * encoder.tokens_per_window and seconds.max() < 20
    step = np.diff(np.unique(seconds)).min()
    quiet = torch.zeros(1, 1001, 64)
    for second in (0.2, 2.7, 6.1, 9.7):
        loud = quiet.clone()
        loud[:, int(100 * second) : int(100 * second) + 10] = 40.0
        with torch.no_grad():
            changed = (htsat(loud) - htsat(quiet)).square().sum(-1)[0]
        where = seconds[: encoder.tokens_per_window][int(changed.argmax())]
        assert where - step <= second <= where + 2 * step


def config(folder: Path) -> Config:
    words = {f"w{i}": i for i in range(89)} | {"<|endoftext|>": 89}
    base = tokenizers.Tokenizer(WordLevel(words, unk_token="w0"))
    base.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    base.save(str(folder / "tokenizer.json"))
    data = DataConfig(root=str(folder), tokenizer=str(folder / "tokenizer.json"))
    return dataclasses.replace(tiny.config(), output=str(folder / "runs"), data=data)


def look(rank: int, world_size: int, run: Config, rows: list[Row]) -> Any:
    groups = process_groups.initialize(run.parallel, run.seed)
    model = build(run, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    checkpoints = Checkpoints(run.stage_folder("stage") / "checkpoints", keep=1)
    resume = Resume(stage="stage", step=1, skipped=0, samples=1, world_size=1)
    checkpoints.save(model, None, groups, resume, {}, Answer.parts)
    process_groups.destroy()

    from megatron_af.inference.decoding import Decoding
    from megatron_af.inference.listener import Listener

    listener = Listener(dataclasses.replace(run, curriculum={"stage": run.curriculum["stage"]}))
    listener.decoding = Decoding(max_new_tokens=4)
    block = next(m for m in listener.model.chunks[0].modules() if isinstance(m, AudioCrossAttention))
    x, audio = torch.randn(5, 2, 64), torch.randn(12, 2, 32)
    difference = 0.0
    # The last has text that sees keys of its row which others see, too; the second position of the first sees none.
    for stretches in (
        Stretches.of([(1, 5), (1, 0), (3, 7), (5, 12)]),
        Stretches.of([(2, 12), (3, 6), (5, 4)], torch.tensor([*range(12), *range(3, 9), *range(20, 24)])),
        None,
    ):
        with torch.no_grad():
            weights_BNSL = attention_weights(block, x, audio, stretches)
            value_LBNK = block.linear_kv(audio)[0].unflatten(-1, (-1, 2 * block.head_dim))[..., block.head_dim :]
            attended = torch.einsum("bnsl,lbnk->sbnk", weights_BNSL, value_LBNK).flatten(2)
            apart = (block.linear_proj(attended)[0] - block(x, audio, stretches)).abs().max().item()
        difference = max(difference, apart)
    return difference, listener(rows), listener.looks(rows)


@pytest.mark.slow
def test_answers_and_where_they_looked(tmp_path: Path) -> None:
    for name, seconds in (("a", 3), ("b", 25)):
        sound = np.sin(np.arange(16_000 * seconds) * 0.1).astype(np.float32)
        soundfile.write(tmp_path / f"{name}.wav", sound, 16_000)
    asked = (Question(prompt="w3 w17 w5", output="w1"), Question(prompt="w9", output="w2"))
    rows = [
        Row(id="text", questions=asked),
        Row(id="short", clips=(Clip(path="a.wav", duration=3.0),), questions=asked),
        Row(id="long", clips=(Clip(path="b.wav", duration=25.0),), questions=asked),
    ]
    chosen = fixed_samples(rows, 2)
    assert [(row.id, len(row.questions)) for row in chosen] == [("short", 1), ("long", 1)]
    ((difference, answers, looks),) = run_distributed(look, 1, config(tmp_path), chosen)
    assert difference < 1e-5, "the weights are those of the kernel"
    for answer, seen, windows in zip(answers, looks, (1, 3), strict=True):
        assert list(seen.tokens) == [*answer.split(), "<|endofchunk|>"]
        assert seen.weights_TL.shape == (len(seen.tokens), 64 * windows) and seen.seconds == 10 * windows
        np.testing.assert_allclose(seen.weights_TL.sum(1), 1, atol=1e-5)
    assert [seen.row for seen in looks] == ["short", "long"]
