"""Operations that a step of training executes, and the most a device could, for the model-FLOPs-utilisation figure.

    tally = answer_tally(config.model, stage)                   # once; needs no model, no device
    flops = tally.of(answer_amounts(tokens_per_window, batch.audio, batch.text.rows))

Counted is what runs: padding too, gradients where they are wanted, the encoder on windows that no cache has. What is
run a second time to save memory (recomputation) is not counted. What the parts of the model cost, they say themselves
(``megatron_af/flops.py``).
"""

import time
from collections.abc import Sequence

import torch

from megatron_af.audio.encode_ahead import key_layout
from megatron_af.audio.encoder import encoder_of
from megatron_af.audio.transform import tally_transform
from megatron_af.config import ModelConfig, StageConfig
from megatron_af.data.batch import IGNORED, StepAudio, TextRows
from megatron_af.decoder.operations import TallyWithAdapters, tally_decoder
from megatron_af.decoder.stretches import Sight
from megatron_af.flops import Amounts, Tally
from megatron_af.model import length_groups
from megatron_af.parallel.device import Device

PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bfloat16 peak of GPUs by a part of their name, from NVIDIA's data sheets."""


def encoder_tally(model: ModelConfig, stage: StageConfig) -> Tally:
    """Of the encoder alone."""
    tally = Tally(stage.trains)
    encoder_of(model.encoder).tally(tally)
    return tally


def answer_tally(model: ModelConfig, stage: StageConfig, *, blocks: bool = True) -> Tally:
    """Of Audio Flamingo; ``blocks`` is False where its gated blocks are left out (``AudioLM.skip_identity_blocks``)."""
    tally = Tally(stage.trains)
    if stage.lora:
        tally = TallyWithAdapters(stage.trains, stage.lora, model.lm.hidden)
    features = encoder_of(model.encoder).tally(tally)
    audio = tally_transform(tally, features, model.encoder.feature_dim, model.transform)
    tally_decoder(tally, model, audio, blocks=blocks)
    return tally


def answer_amounts(
    tokens_per_window: int, audio: StepAudio, rows: Sequence[TextRows], *, encoded_share: float = 1.0
) -> Amounts:
    """What one data-parallel rank's step has (all ranks of its model-parallel group together).

    Args:
        rows: its micro-batches.
        encoded_share: of the windows, those that are encoded and not read from a cache.
    """
    windows = audio.clip_windows
    calls = [
        (len(group), max(windows[clips[i]] for i in group) * tokens_per_window)
        for clips in audio.owners
        for group in length_groups([windows[clip] for clip in clips])
    ]
    places = dict.fromkeys(range(len(windows)), 0)
    keys = [key_layout(micro.clips, windows, places, tokens_per_window)[1] for micro in rows]
    sights = [Sight.of(micro, audio_of_BL) for micro, audio_of_BL in zip(rows, keys, strict=True)]
    shapes = [micro.ids_BS.shape for micro in rows]
    return Amounts(
        windows=sum(windows) * encoded_share,
        clip_tokens=sum(clips * length for clips, length in calls),
        clip_scores=sum(clips * length**2 for clips, length in calls),
        text=sum(batch * length for batch, length in shapes),
        text_scores=sum(
            sight.text.scores if sight.text else batch * length**2
            for sight, (batch, length) in zip(sights, shapes, strict=True)
        ),
        keys=sum(audio_of_BL.numel() for audio_of_BL in keys),
        audio_scores=sum(
            sight.audio.scores if sight.audio else length * audio_of_BL.numel()
            for sight, audio_of_BL, (_, length) in zip(sights, keys, shapes, strict=True)
        ),
        supervised=sum(int((micro.labels_BS != IGNORED).sum()) for micro in rows),
    )


def encoded_share(audio: StepAudio, rank: int) -> float:
    """Of the windows that this rank owns, those that are encoded; 1 where it owns none.

    Args:
        rank: in the model-parallel group.
    """
    own = sum(audio.clip_windows[clip] for clip in audio.owners[rank])
    return (0 if audio.mel_WFM is None else len(audio.mel_WFM)) / own if own else 1.0


def peak_flops(precision: str, device: Device) -> float:
    """Peak of this process's device: from the data sheet for a known GPU, else of a measured matrix product."""
    if device.is_gpu and precision == "bf16":
        for part, peak in PEAK_BF16.items():
            if part in device.name:
                return peak
    size = 4096 if device.is_gpu else 512
    matrix = torch.randn(size, size, device=device.torch)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # reading a value waits for the product
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
