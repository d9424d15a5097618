"""An MP3's header is believed where it can be true, and the file is measured where it cannot."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dali_pipes.containers import seconds
from dali_pipes.mp3 import has_mp3_header
from dali_pipes.waves import read_mono, recording_seconds
from tests.dali_pipes.tones import encoded


def test_an_mp3_that_states_no_length_is_measured(tmp_path: Path) -> None:
    encoded(tmp_path / "stated.mp3", "libmp3lame", 2.5)
    encoded(tmp_path / "bare.mp3", "libmp3lame", 2.5, xing=False)
    assert has_mp3_header(tmp_path / "stated.mp3") and has_mp3_header((tmp_path / "stated.mp3").read_bytes())
    assert not has_mp3_header(tmp_path / "bare.mp3")
    assert seconds(tmp_path / "bare.mp3") == pytest.approx(2.5, abs=0.08)
    tag = b"ID3\x04\0\0" + bytes([0, 0, 40, 1])  # 40 * 128 + 1 bytes, seven bits each
    tagged = tag + bytes(40 * 128 + 1) + (tmp_path / "stated.mp3").read_bytes()[10:]
    assert not has_mp3_header(tag + bytes(9000))
    assert has_mp3_header(tagged)


@pytest.mark.parametrize("frames", [1, 0, 50, 200])
def test_an_mp3_that_states_a_wrong_length_is_measured(tmp_path: Path, frames: int) -> None:
    """Of constant rate, the size says how many frames there are: half and double of them are none."""
    encoded(tmp_path / "a.mp3", "libmp3lame", 2.5)
    content = bytearray((tmp_path / "a.mp3").read_bytes())
    place = content.find(b"Info") + 8
    right = content[place : place + 4]
    assert int.from_bytes(right, "big") in range(100, 110)
    content[place : place + 4] = frames.to_bytes(4, "big")
    assert not has_mp3_header(bytes(content)) and recording_seconds(bytes(content)) == pytest.approx(2.5, abs=0.08)
    content[place : place + 4] = right
    content[place - 1] &= 0xFD  # without the size, nothing says whether it is true
    assert not has_mp3_header(bytes(content))


def test_mp3s_one_behind_another_are_read_to_the_end(tmp_path: Path) -> None:
    encoded(tmp_path / "a.mp3", "libmp3lame", 2.0)
    once = (tmp_path / "a.mp3").read_bytes()
    assert has_mp3_header(once) and not has_mp3_header(once + once)
    assert abs(recording_seconds(once) - 2.0) < 0.1 and abs(recording_seconds(once + once) - 4.0) < 0.2
    wave_T, rate = read_mono(once + once, start=0.0, duration=4.0)
    assert abs(len(wave_T) / rate - 4.0) < 0.1


def variable(length: float, rate: int, quality: float) -> bytearray:
    """Of many bit rates: silence, a tone and noise in turn."""
    t = np.arange(round(length * rate)) / rate
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, len(t))
    wave = np.select([t % 3 < 1, t % 3 < 2], [0 * t, 0.4 * np.sin(2000 * t)], noise)
    data = io.BytesIO()
    soundfile.write(data, wave, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=quality)
    return bytearray(data.getvalue())


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("quality", [0.1, 0.9])
@pytest.mark.parametrize("length", [9.0, 60.0])
def test_one_of_many_bit_rates_is_believed_unless_it_is_far_off(rate: int, quality: float, length: float) -> None:
    data = variable(length, rate, quality)
    assert b"Xing" in data[:400] and has_mp3_header(bytes(data))
    place = data.find(b"Xing") + 8
    frames = int.from_bytes(data[place : place + 4], "big")
    for wrong in (frames // 2, 2 * frames, 10 * frames):
        data[place : place + 4] = wrong.to_bytes(4, "big")
        assert not has_mp3_header(bytes(data)) and recording_seconds(bytes(data)) == pytest.approx(length, abs=0.2)
        wave_T, _ = read_mono(bytes(data), start=0.0, duration=length)
        assert len(wave_T) == pytest.approx(length * rate, abs=0.2 * rate)
