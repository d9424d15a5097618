"""Reading clips: formats, offsets, and every kind of damage."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from dali_pipes.waves import AudioError, check_header, read_wave

RATE = 22_050


def tone(seconds: float, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_formats_are_read_at_the_models_rate(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, np.stack([tone(2.0), tone(2.0)], axis=1), RATE)
    wave = read_wave(tmp_path / name, start=0.5, duration=1.0, sample_rate=16_000)
    assert wave.dtype == np.float32 and abs(len(wave) - 16_000) <= 1
    frequency = np.fft.rfftfreq(len(wave), 1 / 16_000)[np.abs(np.fft.rfft(wave)).argmax()]
    assert abs(frequency - 440) < 2
    assert np.array_equal(wave, read_wave((tmp_path / name).read_bytes(), start=0.5, duration=1.0, sample_rate=16_000))


def test_channels_are_mixed_or_the_first_is_taken(tmp_path: Path) -> None:
    stereo = np.stack([tone(1.0), np.zeros(RATE, np.float32)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    path = tmp_path / "a.wav"
    mixed = read_wave(path, start=0, duration=1.0, sample_rate=RATE)
    first = read_wave(path, start=0, duration=1.0, sample_rate=RATE, channels="first")
    assert np.allclose(mixed, stereo[:, 0] / 2, atol=1e-6) and np.allclose(first, stereo[:, 0], atol=1e-6)


def test_damage_is_named(tmp_path: Path) -> None:
    good = tmp_path / "good.flac"
    soundfile.write(good, tone(4.0), RATE)

    def problem(path: Path, start: float = 0.0, duration: float = 4.0) -> str:
        with pytest.raises(AudioError) as error:
            read_wave(path, start=start, duration=duration, sample_rate=16_000)
        return str(error.value)

    assert "cannot be decoded" in problem(tmp_path / "missing.wav")
    (tmp_path / "text.wav").write_text("not audio")
    assert "cannot be decoded" in problem(tmp_path / "text.wav")
    (tmp_path / "empty.wav").write_bytes(b"")
    assert "cannot be decoded" in problem(tmp_path / "empty.wav")
    assert "begins at 9.00 s of a recording of 4.00 s" in problem(good, start=9.0)
    assert "truncated: 4.00 s of 9.00 s" in problem(good, duration=9.0)
    (tmp_path / "cut.flac").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    assert "truncated" in problem(tmp_path / "cut.flac") or "decoded" in problem(tmp_path / "cut.flac")
    nan = tone(1.0)
    nan[5] = np.nan
    soundfile.write(tmp_path / "nan.wav", nan, RATE, subtype="FLOAT")
    assert "NaN" in problem(tmp_path / "nan.wav", duration=1.0)


def test_headers_are_checked_without_decoding(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(2.0), RATE)
    check_header(tmp_path / "a.wav", start=1.0, duration=1.0)
    with pytest.raises(AudioError, match=r"begins at 3.00 s"):
        check_header(tmp_path / "a.wav", start=3.0, duration=1.0)
    with pytest.raises(AudioError, match="truncated"):
        check_header(tmp_path / "a.wav", start=1.0, duration=2.0)
    with pytest.raises(AudioError, match="cannot be opened"):
        check_header(tmp_path / "b.wav", start=0.0, duration=1.0)
