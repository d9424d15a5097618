"""Packed rows of the released model's sizes, as fake tensors."""

import torch

from megatron_af.data.batch import IGNORED, StepAudio, StepBatch, TextBatch, TextRows, assign_clips

WORLD = 8
LENGTH, SAMPLES, ROWS, SUPERVISED = 4096, 32, 4, 40
"""Positions of a packed row, samples in it, micro-batches of one row each, and a sample's supervised positions."""


def batch(windows: tuple[int, ...], rank: int) -> StepBatch[TextBatch]:
    """Packed rows of 32 samples, each with a clip of its own; mel is on the device.

    Args:
        windows: of a row's clips.
    """
    each = LENGTH // SAMPLES
    place_1S = torch.arange(LENGTH, dtype=torch.int32)[None]
    sample_1S = place_1S // each
    ids_1S = torch.zeros(1, LENGTH, dtype=torch.int64)
    labels_1S = torch.where(place_1S % each < SUPERVISED, 1, IGNORED)
    rows = [
        TextRows(
            ids_BS=ids_1S,
            labels_BS=labels_1S,
            segment_BS=sample_1S,
            first_audio_BS=sample_1S,
            last_audio_BS=sample_1S,
            dataset_BS=torch.zeros_like(sample_1S),
            clips=(tuple(range(row * SAMPLES, (row + 1) * SAMPLES)),),
        )
        for row in range(ROWS)
    ]
    clip_windows = ROWS * tuple(windows[i % len(windows)] for i in range(SAMPLES))
    owners = assign_clips(clip_windows, WORLD)
    return StepBatch(
        audio=StepAudio(clip_windows=clip_windows, owners=owners, mel_WFM=None, seconds=1.0),
        text=TextBatch(rows=tuple(rows), num_tokens=ROWS * LENGTH, too_long={}),
        sample_ids=(),
    )
