"""WAV headers with wrong sizes are read as far as the file goes; right ones are left alone."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dali_pipes.waves import AudioError, check_header, header_note, read_mono, recording_seconds
from tests.dali_pipes.tones import RATE, tone


def pcm_wav(path: Path, wave: np.ndarray, *, data: int | None = None, riff: int | None = None) -> Path:
    """A WAV of 16 bits whose header states other sizes."""
    soundfile.write(path, wave, RATE, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    if data is not None:
        content[40:44] = data.to_bytes(4, "little")
    if riff is not None:
        content[4:8] = riff.to_bytes(4, "little")
    path.write_bytes(content)
    return path


BYTES = 2 * 2 * RATE
"""Of two seconds."""


@pytest.mark.parametrize(
    ("data", "riff"),
    [(data, riff) for data in (0, 2**32 - 1, BYTES + 2, BYTES + 36, 2**31) for riff in (None, 0, 36)]
    + [(BYTES // 2, None)],  # with another RIFF size, too, no header counts the rest in: it may be anything
)
def test_wrong_sizes_in_wav_headers_are_read_as_far_as_the_file_goes(
    tmp_path: Path, data: int, riff: int | None
) -> None:
    path = pcm_wav(tmp_path / "a.wav", tone(2.0), data=data, riff=riff)
    assert abs(recording_seconds(path) - 2.0) < 1e-3
    expected = soundfile.read(pcm_wav(tmp_path / "right.wav", tone(2.0)), dtype="float32")[0]
    for source in (path, path.read_bytes()):
        assert np.array_equal(read_mono(source, start=0.0, duration=2.0)[0], expected)
        piece = read_mono(source, start=1.5, duration=0.5)[0]
        assert np.array_equal(piece, expected[round(1.5 * RATE) :])
        assert f"states {data:,} bytes" in header_note(source)
    check_header(path, start=0.0, duration=2.0)


def test_right_headers_are_left_alone(tmp_path: Path) -> None:
    path = pcm_wav(tmp_path / "a.wav", tone(2.0))
    assert header_note(path) == "" and header_note(tmp_path / "missing.wav") == ""
    content = path.read_bytes()
    path.write_bytes(content + bytes(range(256)) * 20)  # junk behind what the header counts in
    assert header_note(path) == "" and recording_seconds(path) == 2.0
    listed = content[:4] + (len(content) + 4).to_bytes(4, "little") + content[8:] + b"LIST\x04\0\0\0abcd"
    path.write_bytes(listed)
    assert header_note(path) == "" and recording_seconds(path) == 2.0
    empty = pcm_wav(tmp_path / "b.wav", tone(0.0))
    empty.write_bytes(empty.read_bytes() + b"LIST\x04\0\0\0abcd")
    assert header_note(empty) == ""
    with pytest.raises(AudioError, match="holds no samples") as told:
        recording_seconds(empty)
    assert told.value.reason == "empty"


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU"])
def test_recordings_one_behind_another_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.snd"
    soundfile.write(path, tone(1.0), RATE, format=kind, subtype="PCM_16")
    once = path.read_bytes()
    assert recording_seconds(once) == 1.0
    path.write_bytes(once + once)
    for read in (recording_seconds, lambda source: read_mono(source, start=0.0, duration=1.0)):
        with pytest.raises(AudioError, match="several recordings one behind another"):
            read(path)


def test_two_pieces_of_audio_in_one_wav_are_refused(tmp_path: Path) -> None:
    path = pcm_wav(tmp_path / "a.wav", tone(1.0))
    whole = path.read_bytes()
    listed = b"LIST" + (4).to_bytes(4, "little") + b"INFO"
    assert recording_seconds(whole + listed) == 1.0
    for size in (0, 960):
        with pytest.raises(AudioError, match="several recordings"):
            recording_seconds(whole + listed + b"data" + size.to_bytes(4, "little") + whole[44 : 44 + size])


def test_a_recorder_of_rf64_that_lost_power(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0), RATE, format="RF64", subtype="PCM_16")
    expected = read_mono(path, start=0.0, duration=1.0)[0]
    assert header_note(path) == ""
    content = bytearray(path.read_bytes())
    content[20:44] = bytes(24)  # the sizes in its ds64
    path.write_bytes(content)
    assert recording_seconds(path) == 1.0 and "states 0 bytes" in header_note(path)
    assert np.array_equal(read_mono(path, start=0.0, duration=1.0)[0], expected)


def test_more_than_some_samples_missing_is_a_cut(tmp_path: Path) -> None:
    wave = np.stack([tone(2.0)] * 2, axis=1)
    whole = pcm_wav(tmp_path / "a.wav", wave).read_bytes()
    for lost, cut in ((0.005, False), (0.03, True)):
        (tmp_path / "a.wav").write_bytes(whole[: -4 * round(lost * RATE)])
        with pytest.raises(AudioError, match="truncated") if cut else contextlib.nullcontext():
            read_mono(tmp_path / "a.wav", start=0.0, duration=2.0)
