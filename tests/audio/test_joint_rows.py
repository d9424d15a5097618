"""Rows as the released Audio Flamingo 1 hears them, and what that does that ours must not: later audio reaches back."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_af.audio.joint_rows import joint_keys, padded_rows
from megatron_af.config import Config, ConfigError
from megatron_af.data.batch import IGNORED, StepAudio, TextRows
from megatron_af.inference.reading import audio_keys
from megatron_af.model import build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from megatron_af.train.objectives.answer import Answer
from tests import tiny
from tests.distributed import run_distributed

AUDIO_AT = (1, 8, 15)
"""Places of the row's three audios."""
LENGTH = 24


def test_each_audio_takes_its_slots_and_silence_behind() -> None:
    features_WLD = torch.arange(1.0, 4.0)[:, None, None].expand(3, 2, 4)
    silence_LD = torch.full((2, 4), -1.0)
    rows = list(padded_rows(features_WLD, [2, 1], [(1, 0), (), (0,)], 3, silence_LD))
    assert [features[:, 0, 0].tolist() for features, _ in rows] == [[3, -1, -1, 1, 2, -1], [], [1, 2, -1]]
    assert [audio_of.tolist() for _, audio_of in rows] == [[0, -1, -1, 1, 1, -1], [], [0, 0, -1]]

    seen: list[Tensor] = []

    def transform(x_BLD: Tensor, valid: None) -> Tensor:
        seen.append(x_BLD)
        return x_BLD * 10

    keys = joint_keys(transform, rows)
    assert [x_BLD[0, :, 0].tolist() for x_BLD in seen] == [
        [3, 3, -1, -1, -1, -1, 1, 1, 2, 2, -1, -1],
        [1, 1, 2, 2, -1, -1],
    ]
    assert keys.audio_of_BL.tolist() == [[0, 0, 1, 1, 1, 1], [-1] * 6, [0, 0, 0, 0, -1, -1]]
    assert keys.tokens_LBD[:, 0, 0].tolist() == [30, 30, 10, 10, 20, 20]
    assert keys.tokens_LBD[:4, 2, 0].tolist() == [10, 10, 20, 20]
    silent = joint_keys(transform, list(padded_rows(features_WLD[:0], [], [(), ()], 3, silence_LD)))
    assert silent.audio_of_BL.tolist() == [[-1], [-1]] and silent.tokens_LBD.shape == (1, 2, 4)


def model_config(sees: str, family: str) -> Config:
    config = tiny.config()
    own = {"family": "opt", "kv_heads": 4} if family == "opt" else {}
    positions: Any = "sinusoidal" if family == "opt" else "rope"
    transform = dataclasses.replace(config.model.transform, sees=sees, row_windows=3, positions=positions)
    lm = dataclasses.replace(config.model.lm, **own)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, transform=transform, lm=lm))


def row_of_three() -> TextRows:
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(0, 90, (1, LENGTH), generator=generator)
    ids_BS[0, list(AUDIO_AT)] = tiny.AUDIO_ID
    zeros_BS = torch.zeros_like(ids_BS, dtype=torch.int32)
    last_BS = ((ids_BS == tiny.AUDIO_ID).cumsum(1) - 1).clamp(min=0).int()
    return TextRows(
        ids_BS=ids_BS,
        labels_BS=torch.full_like(ids_BS, IGNORED),
        segment_BS=zeros_BS,
        first_audio_BS=zeros_BS,
        last_audio_BS=last_BS,
        dataset_BS=zeros_BS,
        clips=((0, 1, 2),),
    )


@torch.no_grad()
def what_reaches_back(rank: int, world_size: int, sees: str, family: str) -> list[list[bool]]:
    """Whether another recording in place of audio 0, 1, 2 changes the text before each of them, and that behind."""
    config = model_config(sees, family)
    groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    model.front.eval()
    (decoder,), windows, rows = model.chunks, (2, 1, 3), row_of_three()

    def logits(mel: list[Tensor]) -> Tensor:
        audio = StepAudio(clip_windows=windows, owners=((0, 1, 2),), mel_WFM=torch.cat(mel), seconds=60.0)
        return decoder.logits(rows, audio_keys(model.front, audio, rows.clips), model.front.added_rows)[0]

    mel = [tiny.mel_of(clip) for clip in (1, 0, 4)]
    assert [len(clip) for clip in mel] == list(windows)
    plain_SV = logits(mel)
    found = []
    for audio, begin in enumerate(AUDIO_AT):
        changed_SV = logits([clip * 0.5 - 20 if place == audio else clip for place, clip in enumerate(mel)])
        before = begin if audio else 0  # what comes before the first audio sees that one
        changed_S = (changed_SV != plain_SV).any(1)
        found.append([bool(changed_S[:before].any()), bool(changed_S[before:].all())])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "opt"])
def test_another_audio_changes_nothing_before_it(family: str) -> None:
    (found,) = run_distributed(what_reaches_back, 1, "clip", family)
    assert found == [[False, True]] * 3


@pytest.mark.slow
def test_in_the_mode_of_the_release_it_reaches_back() -> None:
    (found,) = run_distributed(what_reaches_back, 1, "row", "opt")
    assert found == [[False, True], [True, True], [True, True]]


@pytest.mark.slow
def test_nothing_trains_in_that_mode() -> None:
    config = model_config("row", "opt")
    with pytest.raises(ConfigError, match=r"model\.transform\.sees = row: set it to clip"):
        Answer().start(config, config.curriculum["stage"], None, None, None)  # type: ignore[arg-type]
