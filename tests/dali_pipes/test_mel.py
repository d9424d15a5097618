"""Windows and mel against the reference on broadband signals, by DALI and by torch."""

import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from dali_pipes import mel
from dali_pipes.flac import shorten_flac
from dali_pipes.mel import Flac, Pcm
from megatron_af.config import FrontEndConfig
from tests.dali_pipes import mels
from tests.dali_pipes.mels import AF1, AF2, ODD, Pipelines, broadband
from tests.dali_pipes.reference import reference_mel

pipeline = mels.pipeline


def flac(wave: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


@pytest.mark.parametrize(
    ("front_end", "seconds", "tolerance"),
    [(AF2, (4.0, 10.0, 23.7, 31.0), 1.5e-3), (AF1, (3.0, 8.5, 12.0), 6e-3), (ODD, (0.5, 2.31, 5.0), 1.5e-3)],
    ids=["af2", "af1", "odd-overlap"],
)
def test_mel_matches_the_reference(
    front_end: FrontEndConfig, seconds: tuple[float, ...], tolerance: float, pipeline: Pipelines
) -> None:
    rate = front_end.sample_rate
    waves = [broadband(s, rate, i) for i, s in enumerate(seconds)]
    windows = [front_end.num_windows(len(w), 3) for w in waves]
    mel_WFM = pipeline(front_end).run([Pcm(w) for w in waves], windows)
    assert mel_WFM.shape == (sum(windows), front_end.window_frames, 64)
    for got, wave, n in zip(mel_WFM.split(windows), waves, windows, strict=True):
        expected = reference_mel(wave, front_end, n)
        used = (expected > -70).flatten()  # the zero-padded tail lies at the floor
        error = (got - expected).abs().flatten()[used]
        assert error.max() < tolerance  # AF1's narrow low filters hold single points near float32's noise
        assert (error > 1.5e-3).float().mean() < 1e-4
        assert (got - expected).abs().max() < 0.1


@pytest.mark.parametrize("fill", ["pad", "repeat", "repeat_whole"])
def test_short_clips_fill_their_window(fill: str, pipeline: Pipelines) -> None:
    """Also one of no samples; those as long as a window or longer stay as they are. FLAC is decoded in the graph."""
    front_end = replace(ODD, short_clips=fill)
    rate = front_end.sample_rate
    waves = [np.round(broadband(s, rate, i) * 2**15) / 2**15 for i, s in enumerate((0.23, 0.5, 0.51, 1.0, 1.9, 0.0))]
    waves = [wave.astype(np.float32) for wave in waves]
    windows = [front_end.num_windows(len(wave), 3) for wave in waves]
    clips = [Flac(flac(wave, rate)) if len(wave) < rate / 2 else Pcm(wave) for wave in waves[:-1]] + [Pcm(waves[-1])]
    mel_WFM = pipeline(front_end).run(clips, windows)
    for got, wave, n in zip(mel_WFM.split(windows), waves, windows, strict=True):
        assert (got - reference_mel(wave, front_end, n)).abs().max() < 1.5e-3
    heard = [float((window_FM > -70).float().mean()) for window_FM in mel_WFM[:3]]
    assert heard == pytest.approx({"pad": [0.27, 0.53, 0.54], "repeat": [1, 1, 1]}.get(fill, [0.95, 1, 0.54]), abs=0.01)


@pytest.mark.parametrize(
    ("front_end", "most", "seconds", "windows"),
    [(AF2, 30, (291.0,), (30,)), (AF1, 16, (33.25, 20.0, 40.0), (16, 9, 16))],
    ids=["af2-5-minutes", "af1-75%-overlap"],
)
def test_the_papers_longest_clips(
    front_end: FrontEndConfig, most: int, seconds: tuple[float, ...], windows: tuple[int, ...], pipeline: Pipelines
) -> None:
    """30 windows of 10 s; 16 windows of 7 s that overlap by 5.25 s. No window beyond the sound, none missing."""
    waves = [broadband(s, front_end.sample_rate, i) for i, s in enumerate(seconds)]
    assert tuple(front_end.num_windows(len(wave), most) for wave in waves) == windows
    mel_WFM = pipeline(front_end).run([Pcm(wave) for wave in waves], windows)
    for got, wave, n in zip(mel_WFM.split(list(windows)), waves, windows, strict=True):
        expected = reference_mel(wave, front_end, n)
        used = expected > -70
        error = (got - expected).abs()[used]
        assert (error > 1.5e-3).float().mean() < 1e-4 and error.max() < 0.02


def test_flac_is_decoded_in_the_graph_and_mixes_with_pcm(pipeline: Pipelines) -> None:
    waves = [broadband(s, 16_000, i) for i, s in enumerate((3.0, 12.0, 7.0))]
    pcm = [np.round(w * 32768).clip(-32768, 32767).astype(np.float32) / 32768 for w in waves]
    pipe = pipeline(AF2)
    expected = pipe.run([Pcm(w) for w in pcm], [1, 2, 1])
    got = pipe.run([Flac(flac(waves[0], 16_000)), Pcm(pcm[1]), Flac(flac(waves[2], 16_000))], [1, 2, 1])
    assert torch.equal(got, expected)


def test_batches_of_any_size_follow_each_other(pipeline: Pipelines) -> None:
    pipe = pipeline(ODD)
    waves = [broadband(1.5, 16_000, i) for i in range(5)]
    one_by_one = torch.cat([pipe.run([Pcm(w)], [2]) for w in waves])
    assert torch.equal(pipe.run([Pcm(w) for w in waves], [2] * 5), one_by_one)
    assert torch.equal(pipe.run([Pcm(w) for w in waves[:3]], [2] * 3), one_by_one[:6])
    assert pipe.run([], []).shape == (0, 101, 64)


def test_silence_and_offset_signals_stay_finite(pipeline: Pipelines) -> None:
    pipe = pipeline(ODD)
    silence = pipe.run([Pcm(np.zeros(16_000, np.float32)), Pcm(np.zeros(0, np.float32))], [1, 1])
    assert torch.allclose(silence, torch.full_like(silence, -100.0))
    positive = np.abs(broadband(1.0, 16_000)) + 0.1
    expected = reference_mel(positive, ODD, 1)
    assert (pipe.run([Pcm(positive)], [1]) - expected).abs().max() < 5e-3


def test_shortened_flac_stops_early(pipeline: Pipelines) -> None:
    wave = broadband(30.0, 16_000)
    data = flac(wave, 16_000)
    short = shorten_flac(data, 50_001)
    decoded, _ = soundfile.read(io.BytesIO(short), dtype="float32")
    assert len(decoded) == 50_001 and np.abs(decoded - decoded_16(wave)[:50_001]).max() < 1e-6
    assert shorten_flac(data, len(wave)) is data
    pipe = pipeline(AF2)
    assert torch.equal(pipe.run([Flac(shorten_flac(data, 160_000))], [1]), pipe.run([Pcm(decoded_16(wave))], [1]))
    with pytest.raises(ValueError, match="FLAC"):
        shorten_flac(b"RIFF" + bytes(60), 10)


def decoded_16(wave: np.ndarray) -> np.ndarray:
    return (np.round(wave * 32768).clip(-32768, 32767) / 32768).astype(np.float32)


def test_a_broken_stream_is_an_error(pipeline: Pipelines) -> None:
    data = flac(broadband(1.0, 16_000), 16_000)
    with pytest.raises(RuntimeError):
        pipeline(ODD).run([Pcm(broadband(1.0, 16_000)), Flac(data[: len(data) // 2])], [1, 1])


def test_many_windows_are_made_in_parts(pipeline: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of consecutive clips; a clip of more windows than a part holds stays whole."""
    windows = [2, 1, 3, 7, 1, 1]
    clips = [Pcm(broadband(0.7 * count, 16_000, place)) for place, count in enumerate(windows)]
    whole = pipeline(ODD).run(clips, windows)
    monkeypatch.setattr(mel, "WINDOWS_AT_ONCE", 4)
    pipe, made = pipeline(ODD), []
    run = pipe._mels.run
    pipe._mels.run = lambda clips, counts: made.append(counts) or run(clips, counts)  # type: ignore[method-assign]
    assert torch.equal(pipe.run(clips, windows), whole)
    assert made == [[2, 1], [3], [7], [1, 1]]


def test_a_front_end_of_another_rate_draws_its_filters_there(pipeline: Pipelines) -> None:
    front_end = replace(ODD, sample_rate=22_050, mel_sample_rate=16_000, mel_scale="slaney")
    wave = broadband(1.0, 22_050)
    error = (pipeline(front_end).run([Pcm(wave)], [1]) - reference_mel(wave, front_end, 1)).abs()
    assert error.max() < 6e-3


def test_a_recorded_level_leaves_what_came_before_as_it_was(pipeline: Pipelines) -> None:
    """Scaled by what was recorded, a window is the same whatever follows; at twice full scale it is cut off."""
    front_end = replace(AF2, window_seconds=1.0, level="recorded")
    quiet, loud = broadband(1.0, 16_000) * 0.3, broadband(1.0, 16_000, 1) * 3
    pipe = pipeline(front_end)
    together = pipe.run([Pcm(np.concatenate([quiet, loud]))], [2])
    assert torch.equal(pipe.run([Pcm(quiet)], [1])[0], together[0])
    assert torch.equal(pipe.run([Pcm(np.clip(loud, -1, 1))], [1])[0], together[1])
    scaled = pipeline(replace(front_end, level="peak")).run([Pcm(np.concatenate([quiet, loud]))], [2])
    assert (scaled[0] - together[0]).abs().min() > 5, "decibels"
    by_hand = quiet * np.float32(1 / np.abs(quiet).max())
    louder = pipeline(replace(front_end, level="peak")).run([Pcm(quiet)], [1])[0]
    torch.testing.assert_close(pipe.run([Pcm(by_hand)], [1])[0], louder, atol=2e-2, rtol=0)
