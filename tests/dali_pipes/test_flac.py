"""FLAC headers: what a stream promises, promising less of it, and finding that it promises too little."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dali_pipes.flac import flac_correction, flac_format, flac_samples, shorten_flac
from dali_pipes.waves import AudioError, check_header, header_note, read_mono, recording_seconds

NOISE_T2 = np.random.default_rng(0).uniform(-0.5, 0.5, (10_000, 2)).astype(np.float32)


def stream(wave: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC")
    return file.getvalue()


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (96_000, 1)])
def test_the_header_says_rate_channels_and_length(rate: int, channels: int) -> None:
    data = stream(NOISE_T2[:, :channels], rate)
    assert flac_format(data) == (rate, channels)
    assert flac_samples(data) == 10_000


def test_a_shortened_stream_promises_less_and_keeps_its_sound() -> None:
    data = stream(NOISE_T2, 16_000)
    short = shorten_flac(data, 4_100)
    assert flac_samples(short) == 4_100 and flac_format(short) == (16_000, 2) and len(short) == len(data)
    whole_T2, _ = soundfile.read(io.BytesIO(data))
    short_T2, _ = soundfile.read(io.BytesIO(short))
    assert np.array_equal(short_T2, whole_T2[:4_100])
    assert shorten_flac(data, 10_000) is data and shorten_flac(data, 10_001) is data


def test_lengths_beyond_32_bits_keep_their_high_bits() -> None:
    """36 bits: the upper four share a byte with the sample width."""
    data = bytearray(stream(NOISE_T2, 16_000))
    data[21] |= 0x0F
    assert flac_samples(bytes(data)) == 0xF_0000_2710
    wide = shorten_flac(bytes(data), 0x5_0000_0001)
    assert flac_samples(wide) == 0x5_0000_0001 and wide[21] & 0xF0 == data[21] & 0xF0


@pytest.mark.parametrize("data", [b"", b"RIFF" + bytes(60), b"fLaC", b"fLaC\x84" + bytes(60)])
def test_what_is_no_flac_stream_is_said_so(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected a FLAC stream that begins with STREAMINFO"):
        flac_samples(data)
    if data[:4] != b"fLaC" or len(data) < 42:
        assert flac_format(data) is None


def pieces(seconds: float, channels: int = 1) -> np.ndarray:
    """Sound at 16 kHz that falls silent every second: frames of many lengths."""
    place = np.arange(round(seconds * 16_000))
    wave = 0.5 * np.sin(place / 6) * (place % 16_000 < 9_000)
    return np.stack([wave, *[0.5 * wave] * (channels - 1)], axis=1).astype(np.float32)


@pytest.mark.parametrize(("channels", "subtype", "level"), [(1, "PCM_16", 0.0), (2, "PCM_16", 1.0), (2, "PCM_24", 0.5)])
@pytest.mark.parametrize("promised", [1, 16_000, 47_999])
def test_a_header_that_states_fewer_samples_hides_none(
    tmp_path: Path, promised: int, channels: int, subtype: str, level: float
) -> None:
    wave = pieces(3.0, channels=channels)
    soundfile.write(tmp_path / "a.flac", wave, 16_000, subtype=subtype, compression_level=level)
    right = (tmp_path / "a.flac").read_bytes()
    expected, _ = read_mono(right, start=0.0, duration=3.0)
    assert flac_correction(right) is None and header_note(tmp_path / "a.flac") == ""
    path = tmp_path / "short.flac"
    path.write_bytes(shorten_flac(right, promised))
    for source in (path, path.read_bytes()):
        assert recording_seconds(source) == 3.0
        assert np.array_equal(read_mono(source, start=0.0, duration=3.0)[0], expected)
        assert np.array_equal(read_mono(source, start=2.5, duration=0.5)[0], expected[40_000:])
        assert header_note(source) == f"its header states {promised:,} samples; the 48,000 that are there were read"
    check_header(path, start=0.0, duration=3.0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize(("rate", "frame"), [(16_000, 192), (22_050, 500), (44_100, 4_608), (96_000, 4_096)])
def test_frames_of_another_encoder_are_read(tmp_path: Path, rate: int, frame: int) -> None:
    """Numbers of one to three bytes, lengths and rates that stand in the head's own bytes."""
    made = ["-f", "lavfi", "-i", f"sine=440:duration=4:sample_rate={rate}", "-frame_size", str(frame)]
    subprocess.run(["ffmpeg", "-v", "error", *made, str(tmp_path / "a.flac")], check=True)
    right = (tmp_path / "a.flac").read_bytes()
    assert flac_samples(right) == 4 * rate and flac_correction(right) is None
    correction = flac_correction(shorten_flac(right, rate))
    assert correction is not None
    with correction.opened(shorten_flac(right, rate)) as file:
        assert file.read() == right


NOISE_T = np.random.default_rng(0).uniform(-0.5, 0.5, 100_000)


@pytest.mark.parametrize(
    ("first_T", "second_T"),
    [(NOISE_T[:40_000], NOISE_T[:size]) for size in (8_000, 40_000, 100_000)]
    + [(pieces(4.0), pieces(seconds)) for seconds in (1.0, 3.0, 6.0)],  # in as many bytes as the first might need
)
def test_one_behind_another_is_several_recordings(tmp_path: Path, first_T: np.ndarray, second_T: np.ndarray) -> None:
    path = tmp_path / "both.flac"
    path.write_bytes(stream(first_T, 16_000) + stream(second_T, 16_000))
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioError, match="several recordings one behind another"):
            recording_seconds(source)


def test_a_stream_that_was_cut_is_still_short(tmp_path: Path) -> None:
    data = stream(pieces(4.0), 16_000)
    path = tmp_path / "cut.flac"
    path.write_bytes(data[: len(data) // 2])
    assert header_note(path) == ""
    with pytest.raises(AudioError, match="cut"):
        read_mono(path, start=0.0, duration=4.0)


def test_bytes_that_look_like_frames_change_nothing() -> None:
    """A picture of noise behind the header, and noise behind the last frame."""
    rng = np.random.default_rng(1)
    data = stream(pieces(2.0), 16_000)
    heads = b"".join(b"\xff\xf8" + rng.bytes(8) for _ in range(3_000))
    for changed in (data + rng.bytes(50_000), data + heads, data[:42] + rng.bytes(200_000) + data[42:]):
        assert flac_correction(changed) is None
