"""Clips to mel windows: how many, of which seconds, natively or through soundfile alike, silence where it is broken."""

import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dali_pipes.waves import AudioError
from megatron_af.config import DataConfig, FrontEndConfig, ModelConfig
from megatron_af.data.clips import ClipLoader, own_cores
from megatron_af.data.rows import Clip
from tests.data.toy import CPU, toy_config, write_tone

RATE = 16_000


def loader(folder: Path, max_windows: int = 3, overlap: float = 0.0) -> ClipLoader:
    config = toy_config(folder)
    front_end = FrontEndConfig(window_seconds=1.0, overlap_seconds=overlap)
    data: DataConfig = replace(config.data, workers=2)
    return ClipLoader(
        replace(config, model=ModelConfig(front_end=front_end), data=data), max_windows=max_windows, device=CPU
    )


@pytest.mark.parametrize(
    ("duration", "overlap", "windows", "seconds"),
    [(0.4, 0.0, 1, 0.4), (1.0, 0.0, 1, 1.0), (2.4, 0.0, 3, 2.4), (9.0, 0.0, 3, 3.0), (9.0, 0.25, 3, 2.5)],
)
def test_windows_and_the_seconds_they_hear(
    tmp_path: Path, duration: float, overlap: float, windows: int, seconds: float
) -> None:
    clips = loader(tmp_path, overlap=overlap)
    clip = Clip(path="a/0-0.wav", duration=duration)
    assert clips.num_windows(clip) == windows and clips.seconds(clip) == pytest.approx(seconds)


def test_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_af.cores.usable_cores", lambda: 16)
    for ranks, cores in (("8", 2), ("1", 16), ("32", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert own_cores() == cores


def test_prepared_audio_reads_like_the_file_it_was_made_from(tmp_path: Path) -> None:
    clips = loader(tmp_path)
    write_tone(tmp_path / "data/x.wav", 2.6, 7)
    wave, _ = soundfile.read(tmp_path / "data/x.wav", dtype="float32")
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="FLAC", subtype="PCM_16")
    flac = file.getvalue()
    (tmp_path / "data/shard").write_bytes(b"before" + flac + b"behind")
    raw = Clip(path="x.wav", duration=2.6)
    prepared = Clip(path="shard", offset=6, length=len(flac), duration=2.6, digest=hashlib.sha256(flac).hexdigest())
    mel_WFM, bad = clips.load([prepared, raw])
    assert bad == {} and mel_WFM.shape[0] == 6
    torch.testing.assert_close(mel_WFM[:3], mel_WFM[3:], atol=0.05, rtol=0)
    assert clips.wave(raw).shape == (round(2.6 * RATE),)
    np.testing.assert_allclose(clips.wave(prepared), wave, atol=1e-4)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.3])
def test_the_beginning_of_prepared_audio_is_all_that_is_heard_of_it(tmp_path: Path, seconds: float) -> None:
    clips = loader(tmp_path)
    write_tone(tmp_path / "data/x.wav", 2.6, 7)
    wave, _ = soundfile.read(tmp_path / "data/x.wav", dtype="float32")
    soundfile.write(tmp_path / "data/whole.flac", wave, RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "data/cut.flac", wave[: round(seconds * RATE)], RATE, subtype="PCM_16")
    whole, cut = ((tmp_path / f"data/{name}.flac").read_bytes() for name in ("whole", "cut"))
    prepared = Clip(path="whole.flac", length=len(whole), duration=seconds, digest=hashlib.sha256(whole).hexdigest())
    alone = Clip(path="cut.flac", length=len(cut), duration=seconds, digest=hashlib.sha256(cut).hexdigest())
    (mel_WFM, bad), (cut_WFM, _) = clips.load([prepared]), clips.load([alone])
    assert bad == {} and torch.equal(mel_WFM, cut_WFM)


def test_a_clip_is_read_from_its_start(tmp_path: Path) -> None:
    clips = loader(tmp_path)
    write_tone(tmp_path / "data/x.wav", 3.0, 7)
    whole = clips.wave(Clip(path="x.wav", duration=3.0))
    np.testing.assert_allclose(clips.wave(Clip(path="x.wav", start=1.5, duration=0.5)), whole[24_000:32_000], atol=1e-6)


def test_what_cannot_be_decoded_is_silence_of_the_promised_length(tmp_path: Path) -> None:
    clips = loader(tmp_path)
    write_tone(tmp_path / "data/x.wav", 1.0, 7)
    (tmp_path / "data/broken.wav").write_bytes(b"RIFF")
    good, broken, gone = (Clip(path=path, duration=d) for path, d in (("x.wav", 1.0), ("broken.wav", 2.0), ("no", 1.0)))
    mel_WFM, bad = clips.load([broken, good, gone])
    assert set(bad) == {0, 2} and mel_WFM.shape[0] == 4
    silent, (alone, _) = mel_WFM[:2], clips.load([good])
    assert torch.equal(silent[0], silent[1]) and silent.std() == 0 and torch.equal(mel_WFM[2:3], alone)
    for clip in (broken, gone):
        with pytest.raises(AudioError):
            clips.check(clip)
    clips.check(good)
    clips.check(Clip(path="no", length=5, duration=1.0))  # prepared: was looked at when it was made


def test_a_recording_is_known_by_its_bytes(tmp_path: Path) -> None:
    clips = loader(tmp_path)
    for name in ("x", "y"):
        write_tone(tmp_path / f"data/{name}.wav", 1.0, 7)
    write_tone(tmp_path / "data/z.wav", 1.0, 8)
    x, y, z = (clips.digest(Clip(path=f"{name}.wav", duration=1.0)) for name in "xyz")
    assert x == y != z and clips.digest(Clip(path="x.wav", duration=1.0, digest="sha256:1")) == "sha256:1"
    write_tone(tmp_path / "data/x.wav", 1.0, 8)
    os.utime(tmp_path / "data/x.wav", ns=(1, 1))  # written again: another time of change
    assert clips.digest(Clip(path="x.wav", duration=1.0)) == z
