"""FLAC headers: what a stream promises, and promising less of it."""

import io

import numpy as np
import pytest
import soundfile

from dali_pipes.flac import flac_format, flac_samples, shorten_flac

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
