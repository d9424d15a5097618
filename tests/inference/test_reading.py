"""Rows go on, come back, part and meet, and read what they would have read alone."""

from typing import Any

import pytest
import torch

from megatron_af.data.batch import AudioKeys, StepAudio
from megatron_af.inference.reading import audio_keys
from tests.distributed import run_distributed
from tests.inference.prompts import audio, prompt_ids, read, slow_logits, tiny_model, tokenizer

pytestmark = pytest.mark.slow


def difference(got_V: torch.Tensor, wanted_V: torch.Tensor) -> float:
    seen = wanted_V.isfinite()
    return float((got_V[seen] - wanted_V[seen]).abs().max() / wanted_V[seen].abs().max())


class Front:
    """Counts the windows of each call of its encoder."""

    tokens_per_window, feature_dim, added_rows = 2, 3, torch.zeros(1, 3)

    def __init__(self, sees: str) -> None:
        self.sees, self.calls = sees, list[int]()

    def encode(self, mel_WFM: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(mel_WFM))
        return mel_WFM[:, :2, :3]

    def __call__(self, features_WLD: torch.Tensor, windows: Any) -> torch.Tensor:
        return features_WLD.flatten(0, 1)

    def row_keys(self, features_WLD: torch.Tensor, windows: Any, clips: Any) -> AudioKeys:
        return AudioKeys(tokens_LBD=self(features_WLD, windows)[:, None], audio_of_BL=torch.zeros(1, 1))


@pytest.mark.parametrize("sees", ["clip", "row"])
def test_long_recordings_are_encoded_by_windows(sees: str) -> None:
    """Sixteen of five minutes would have taken ten GB at once."""
    front: Any = Front(sees)
    windows = (30, 30, 30, 30, 30)
    mel_WFM = torch.randn(150, 4, 5)
    audio = StepAudio(clip_windows=windows, owners=((0, 1, 2, 3, 4),), mel_WFM=mel_WFM, seconds=1.0)
    with torch.no_grad():
        keys = audio_keys(front, audio, [(0, 1, 2, 3, 4)])
    assert front.calls == [64, 64, 22]
    assert torch.equal(keys.tokens_LBD[:, 0], mel_WFM[:, :2, :3].flatten(0, 1))


def wander(rank: int, world_size: int) -> Any:
    model, tokens = tiny_model(), tokenizer()
    found = []

    def check(logits_BV: torch.Tensor, *rows: tuple[int, list[int]]) -> None:
        assert len(logits_BV) == len(rows)
        for logits_V, (number, answer) in zip(logits_BV, rows, strict=True):
            found.append(difference(logits_V, slow_logits(model, tokens, number, answer)[-1]))

    one = read(model, tokens, [0, 2])
    check(one.read([prompt_ids(tokens, 0), prompt_ids(tokens, 2)]), (0, []), (2, []))
    one.select([1, 0, 1])
    check(one.read([[5], [6, 7, 8], [9, 10]]), (2, [5]), (0, [6, 7, 8]), (2, [9, 10]))
    branch = one.copy()
    branch.select([1])
    check(branch.read([[11]]), (0, [6, 7, 8, 11]))
    check(one.read([[1], [2], [3]]), (2, [5, 1]), (0, [6, 7, 8, 2]), (2, [9, 10, 3]))
    # One token more than it went back to: what was read behind that place is not seen any more.
    branch.back_to([*prompt_ids(tokens, 0), 6])
    assert branch.lengths == [len(prompt_ids(tokens, 0)) + 1]
    check(branch.read([[70, 71]]), (0, [6, 70, 71]))
    # Rows with other audio, and with none, come in; the long text of the one makes the others' caches grow.
    other = read(model, tokens, [3, 1])
    other.read([prompt_ids(tokens, 3), prompt_ids(tokens, 1)])
    long = [(3 * n) % 80 for n in range(100)]
    other.read([long, [4]])
    one.join(other)
    check(
        one.read([[20], [21], [22], [23], [24]]),
        (2, [5, 1, 20]), (0, [6, 7, 8, 2, 21]), (2, [9, 10, 3, 22]), (3, [*long, 23]), (1, [4, 24]),
    )  # fmt: skip
    one.select([3, 4])
    check(one.read([[1], [2]]), (3, [*long, 23, 1]), (1, [4, 24, 2]))
    # A second recording is heard when its mark is read: the third prompt hears clips 0 and 2.
    late = read(model, tokens, [0])
    ids = prompt_ids(tokens, 2)
    late.read([ids[:1]])
    with torch.no_grad():
        keys = audio_keys(model.front, audio(), [(2,)])
    late.hear(type(keys)(tokens_LBD=keys.tokens_LBD, audio_of_BL=keys.audio_of_BL + 1))
    check(late.read([ids[1:]]), (2, []))
    return found


def test_what_rows_read_is_what_they_would_read_alone() -> None:
    (found,) = run_distributed(wander, 1)
    assert len(found) == 18 and max(found) < 1e-5, found
