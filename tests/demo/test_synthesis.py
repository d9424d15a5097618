"""Synthesised sources: enough kinds and takes, all different, none clipped, the same for a seed."""

import numpy as np

from megatron_af.demo.recordings import MIN_KINDS, MIN_RECORDINGS
from megatron_af.demo.synthesis import TAKES, VOICES, synthesise

SOUNDS = list(synthesise(16_000))


def test_there_are_as_many_as_the_demo_asks_for() -> None:
    kinds = [kind for kind, _ in SOUNDS]
    assert len(set(kinds)) == len(VOICES) >= MIN_KINDS and len(SOUNDS) >= MIN_RECORDINGS
    assert all(kinds.count(kind) == TAKES for kind in VOICES)


def test_every_take_is_a_sound_of_its_own() -> None:
    assert len({wave.tobytes() for _, wave in SOUNDS}) == len(SOUNDS)
    for kind, wave in SOUNDS:
        assert wave.dtype == np.float32 and 0.25 <= len(wave) / 16_000 <= 3.0, kind
        assert abs(wave).max() == 0.5 and abs(wave[0]) < 1e-3 and abs(wave[-1]) < 1e-3, kind


def test_half_of_the_takes_are_short_and_half_long() -> None:
    lengths = np.array([len(wave) / 16_000 for _, wave in SOUNDS])
    assert ((lengths < 0.71).sum(), (lengths > 1.69).sum()) == (len(SOUNDS) // 2, len(SOUNDS) // 2)


def test_the_sounds_follow_from_the_seed() -> None:
    again, other = list(synthesise(16_000)), list(synthesise(16_000, seed=1))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(SOUNDS, again, strict=True))
    assert not any(np.array_equal(a, b) for (_, a), (_, b) in zip(SOUNDS, other, strict=True))


def test_the_rate_changes_no_pitch() -> None:
    def pitch(kind: str, rate: int) -> float:
        wave = next(wave for name, wave in synthesise(rate) if name == kind)
        return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))

    for kind in ("beep", "horn", "string"):
        assert abs(pitch(kind, 16_000) - pitch(kind, 32_000)) < 10
