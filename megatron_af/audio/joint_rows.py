"""Audio tokens as the released Audio Flamingo 1 makes them (``model.transform.sees: row``).

    rows = padded_rows(features_WLD, windows, text.clips, slots=16, silence_LD=silence_LD)
    keys = joint_keys(front.transform, rows)

Each audio of a row takes the same number of windows, silence behind its own, and one run of the transformation layers
goes over all of them without a mask (AF1 src/flamingo.py): later audios and silence reach the tokens of earlier ones.
Weights that were trained so need it. Everything else lets a clip see itself alone.

Shapes: W windows, L tokens of a window, D audio width, T tokens of a row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from megatron_af.data.batch import AudioKeys

type JointRow = tuple[Tensor, Tensor]
"""Features (W, L, D) of all windows of a row, and the audio that each belongs to: -1 at silence (W)."""


def padded_rows(
    features_WLD: Tensor, windows: Sequence[int], clips_of_row: Iterable[Sequence[int]], slots: int, silence_LD: Tensor
) -> Iterator[JointRow]:
    """
    Args:
        features_WLD: of some clips, clip after clip.
        windows: of each of them, at most ``slots``.
        slots: windows that each audio of a row takes.
        silence_LD: features of a silent window.
    """
    clips = torch.split(features_WLD, list(windows))
    for row in clips_of_row:
        features_AWLD = silence_LD.repeat(len(row), slots, 1, 1)
        audio_of_AW = torch.full((len(row), slots), -1, dtype=torch.int32)
        for audio, clip in enumerate(row):
            features_AWLD[audio, : windows[clip]] = clips[clip]
            audio_of_AW[audio, : windows[clip]] = audio
        yield features_AWLD.flatten(0, 1), audio_of_AW.flatten()


def joint_keys(transform: Callable[[Tensor, None], Tensor], rows: Iterable[JointRow]) -> AudioKeys:
    """What the decoder hears of each row: the tokens of its audios, without those of silence."""
    tokens: list[Tensor] = []
    audio_of: list[Tensor] = []
    for features_WLD, audio_of_W in rows:
        audio_of_T = audio_of_W.repeat_interleave(features_WLD.shape[1])
        features_TD = features_WLD.flatten(0, 1)
        tokens_TD = transform(features_TD[None], None)[0] if len(features_TD) else features_TD
        heard_T = audio_of_T >= 0
        tokens.append(tokens_TD[heard_T.to(tokens_TD.device)])
        audio_of.append(audio_of_T[heard_T])
    if not any(len(row_TD) for row_TD in tokens):  # kernels want no empty axis
        tokens[0], audio_of[0] = tokens[0].new_zeros(1, tokens[0].shape[1]), torch.tensor([-1], dtype=torch.int32)
    return AudioKeys(
        tokens_LBD=pad_sequence(tokens),
        audio_of_BL=pad_sequence(audio_of, batch_first=True, padding_value=-1),
    )
