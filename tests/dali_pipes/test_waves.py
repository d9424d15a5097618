"""Reading clips: formats, offsets, and every kind of damage."""

import contextlib
import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from dali_pipes.waves import (
    AudioError,
    check_header,
    is_recording,
    read_mono,
    read_wave,
    recording_seconds,
    samples_a_second,
)
from tests.dali_pipes.tones import RATE, tone


def write_container(path: Path, codec: str, wave: np.ndarray, rate: int) -> None:
    """Encodes a stereo file with FFmpeg."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo", bit_rate=96_000)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        frame.sample_rate = rate
        for piece in av.AudioResampler(stream.format, "stereo", stream.rate, frame_size=1024).resample(frame):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.m4a", "a.webm", "a.wma"])
def test_formats_are_read_at_the_models_rate(tmp_path: Path, name: str) -> None:
    codecs, rate = {".m4a": "aac", ".webm": "libopus", ".wma": "wmav2"}, RATE
    if codec := codecs.get(Path(name).suffix):
        rate = 48_000 if codec == "libopus" else RATE
        write_container(tmp_path / name, codec, tone(2.0, rate), rate)
    else:
        soundfile.write(tmp_path / name, np.stack([tone(2.0), tone(2.0)], axis=1), RATE)
    assert abs(recording_seconds(tmp_path / name) - 2.0) < 0.11
    assert samples_a_second(tmp_path / name) == 2 * rate
    wave = read_wave(tmp_path / name, start=0.5, duration=1.0, sample_rate=16_000)
    assert wave.dtype == np.float32 and abs(len(wave) - 16_000) <= 1
    frequency = np.fft.rfftfreq(len(wave), 1 / 16_000)[np.abs(np.fft.rfft(wave)).argmax()]
    assert abs(frequency - 440) < 2
    assert np.array_equal(wave, read_wave((tmp_path / name).read_bytes(), start=0.5, duration=1.0, sample_rate=16_000))


def test_channels_are_mixed_or_the_first_is_taken(tmp_path: Path) -> None:
    stereo = np.stack([tone(1.0), np.zeros(RATE, np.float32)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    path = tmp_path / "a.wav"
    mixed, _ = read_mono(path, start=0, duration=1.0)
    first, rate = read_mono(path, start=0, duration=1.0, channels="first")
    assert rate == RATE
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


def test_what_is_no_audio_has_no_samples(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a dog barks")
    with pytest.raises(AudioError, match="cannot be opened: it is text"):
        samples_a_second(tmp_path / "a.txt")


def test_headers_are_checked_without_decoding(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(2.0), RATE)
    check_header(tmp_path / "a.wav", start=1.0, duration=1.0)
    with pytest.raises(AudioError, match=r"begins at 3.00 s"):
        check_header(tmp_path / "a.wav", start=3.0, duration=1.0)
    with pytest.raises(AudioError, match="truncated"):
        check_header(tmp_path / "a.wav", start=1.0, duration=2.0)
    with pytest.raises(AudioError, match="cannot be opened"):
        check_header(tmp_path / "b.wav", start=0.0, duration=1.0)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.flac"])
def test_headers_that_promise_more_than_the_file_holds(tmp_path: Path, name: str) -> None:
    """45 ms are missing at the end: the manifest's tolerance of 5% and 50 ms would not notice."""
    path = tmp_path / name
    soundfile.write(path, tone(4.0), RATE, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[: -(2000 if name != "a.flac" else 400)])
    assert abs(recording_seconds(path) - 4.0) < 1e-3
    with pytest.raises(AudioError) as error:
        read_wave(path, start=3.0, duration=1.0, sample_rate=16_000)
    assert error.value.reason == "truncated"
    if name != "a.flac":  # whether a FLAC stream is whole shows only when it is decoded
        with pytest.raises(AudioError, match="truncated"):
            check_header(path, start=3.0, duration=1.0)
    check_header(path, start=1.0, duration=1.0)
    assert len(read_wave(path, start=1.0, duration=1.0, sample_rate=16_000)) == 16_000


def test_lengths_that_no_header_states(tmp_path: Path) -> None:
    """Streams written into a pipe, and MP3 of varying rate without a table: libsndfile would guess or give up."""
    soundfile.write(tmp_path / "a.flac", tone(4.0), RATE)
    flac = bytearray((tmp_path / "a.flac").read_bytes())
    flac[21:26] = bytes([flac[21] & 0xF0, 0, 0, 0, 0])  # total samples: unknown
    (tmp_path / "a.flac").write_bytes(flac)
    soundfile.write(tmp_path / "a.wav", tone(4.0), RATE, subtype="PCM_16")
    wav = bytearray((tmp_path / "a.wav").read_bytes())
    wav[4:8] = wav[40:44] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(wav)
    wave = np.concatenate([np.zeros(2 * RATE, np.float32), tone(2.0)])
    with av.open(str(tmp_path / "a.mp3"), "w", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        stream.codec_context.qscale, stream.codec_context.options = True, {"global_quality": "472"}
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for piece in av.AudioResampler(stream.format, "mono", RATE, frame_size=576).resample(frame):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    with soundfile.SoundFile(tmp_path / "a.mp3") as file:
        assert abs(file.frames / RATE - 4.0) > 1  # the guess
    for name in ("a.flac", "a.wav", "a.mp3"):
        assert abs(recording_seconds(tmp_path / name) - 4.0) < 0.1
        piece = read_wave(tmp_path / name, start=3.0, duration=0.5, sample_rate=16_000)
        assert len(piece) == 8_000 and np.abs(piece).max() > 0.4
        with pytest.raises(AudioError, match="begins at"):
            read_wave(tmp_path / name, start=9.0, duration=1.0, sample_rate=16_000)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a"])
def test_a_late_clip_is_sought_not_decoded_up_to(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a minute, a second near the end touches a small part of the bytes."""
    wave = np.random.default_rng(0).standard_normal(60 * RATE).astype(np.float32) * 0.1
    if name == "a.m4a":
        write_container(tmp_path / name, "aac", wave, RATE)
    else:
        soundfile.write(tmp_path / name, wave, RATE)
    data = (tmp_path / name).read_bytes()
    read = 0

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal read
            found = super().read(size)
            read += len(found)
            return found

        def readinto(self, buffer: Any, /) -> int:
            nonlocal read
            count = super().readinto(buffer)
            read += count
            return count

    monkeypatch.setattr(io, "BytesIO", Counting)
    piece = read_wave(data, start=55.0, duration=1.0, sample_rate=16_000)
    assert len(piece) == 16_000 and 0 < read < len(data) / 3


def test_names_are_never_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would read ``concat:/somewhere/else`` from outside the data root."""
    soundfile.write(tmp_path / "a.mp3", tone(1.0), RATE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError, match="cannot be opened"):
        recording_seconds(Path(f"concat:{tmp_path}/a.mp3"))


def test_opposite_phase_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(1.0), -0.99 * tone(1.0)], axis=1), RATE)
    with pytest.raises(AudioError, match="opposite phase") as error:
        read_mono(path, start=0.0, duration=1.0)
    assert error.value.reason == "channels cancel"
    assert np.abs(read_mono(path, start=0.0, duration=1.0, channels="first")[0]).max() > 0.4
    six = np.zeros((RATE, 6), np.float32)
    six[:, 2] = tone(1.0)  # the centre alone is no cancellation
    soundfile.write(path, six, RATE)
    assert np.abs(read_mono(path, start=0.0, duration=1.0)[0]).max() > 0.05


@pytest.mark.parametrize("name", ["a.ogg", "a.opus"])
def test_several_ogg_recordings_in_one_file_are_read_whole(tmp_path: Path, name: str) -> None:
    subtype = "OPUS" if name == "a.opus" else "VORBIS"
    rate = 48_000 if name == "a.opus" else RATE
    for part, hz in ((1, 440.0), (2, 880.0)):
        soundfile.write(tmp_path / f"{part}.ogg", tone(2.0, rate, hz), rate, format="OGG", subtype=subtype)
    path = tmp_path / name
    path.write_bytes((tmp_path / "1.ogg").read_bytes() + (tmp_path / "2.ogg").read_bytes())
    assert abs(recording_seconds(path) - 4.0) < 0.05
    for start, hz in ((0.5, 440.0), (2.5, 880.0)):
        wave = read_wave(path, start=start, duration=1.0, sample_rate=16_000)
        assert abs(np.fft.rfftfreq(len(wave), 1 / 16_000)[np.abs(np.fft.rfft(wave)).argmax()] - hz) < 2
    wave, own = read_mono(path, start=0.0, duration=recording_seconds(path))
    assert abs(len(wave) / own - 4.0) < 0.05


def write_late_video(path: Path, late: float) -> None:
    """A picture from second 0, sound from ``late`` on: 2 s of 440 Hz, then 2 s of 880 Hz."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=5)
        picture.width = picture.height = 64
        sound = container.add_stream("aac" if path.suffix != ".mkv" else "flac", rate=RATE, layout="mono")
        packets = []
        for number in range(round(5 * (late + 4.0))):
            image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            image.pts, image.time_base = number, Fraction(1, 5)
            packets += picture.encode(image)
        packets += picture.encode(None)
        wave = np.concatenate([tone(2.0), tone(2.0, hz=880.0)])[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, round(late * RATE), Fraction(1, RATE)
        resampler = av.AudioResampler(sound.format, "mono", RATE, frame_size=1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            packets += sound.encode(piece)
        packets += sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.pts * packet.time_base):
            container.mux(packet)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_second_zero_is_the_first_sample_whatever_the_container_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_late_video(path, late=2.0)
    assert abs(recording_seconds(path) - 4.0) < 0.15
    wave, rate = read_mono(path, start=0.0, duration=recording_seconds(path))
    assert abs(len(wave) / rate - 4.0) < 0.15
    for start, hz in ((0.2, 440.0), (1.0, 440.0), (2.2, 880.0), (3.0, 880.0)):
        piece = read_wave(path, start=start, duration=0.7, sample_rate=16_000)
        assert abs(np.fft.rfftfreq(len(piece), 1 / 16_000)[np.abs(np.fft.rfft(piece)).argmax()] - hz) < 3, start
        own, _ = read_mono(path, start=start, duration=0.7)
        near = range(round(start * rate) - 30, round(start * rate) + 31)  # Matroska's clock ticks in milliseconds
        assert min(np.abs(own - wave[at : at + len(own)]).max() for at in near) < 0.02, start


def test_a_name_of_raw_samples_is_no_reason_to_fail(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0), RATE)
    (tmp_path / "a.wav").rename(tmp_path / "wav.raw")
    (tmp_path / "samples.raw").write_bytes(bytes(range(1, 250)) * 9)
    assert is_recording(tmp_path / "wav.raw") and recording_seconds(tmp_path / "wav.raw") == 1.0
    with pytest.raises(AudioError, match="holds no audio"):
        is_recording(tmp_path / "samples.raw")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"404: Not Found", "it is text ('404: Not Found')"),
        (b"<!DOCTYPE html><html><body>gone</body></html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "git lfs pull"),
        (bytes(4096), "nothing but zero bytes"),
        (b"\x1f\x8b\x08" + bytes(range(100)), "compressed (gzip)"),
        (bytes(range(7, 250)) * 9, "neither libsndfile nor FFmpeg knows"),
    ],
)
def test_what_is_no_audio_is_called_by_its_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(AudioError) as error:
            recording_seconds(source)
        assert words in str(error.value) and "Errno" not in str(error.value)
    for other, name in ((tmp_path, "it is a folder"), (tmp_path / "no.wav", "it does not exist")):
        with pytest.raises(AudioError, match=name):
            read_mono(other, start=0.0, duration=1.0)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # which a user sees as a traceback
@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64", "FLAC", "OGG", "RF64", "SVX"])
def test_any_broken_byte_of_a_header_is_told_of_and_nothing_else_is_printed(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A header may ask for what lies before the file, or name a format for which there is no decoder."""
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(400) / 5), 16_000, format=kind)
    whole = out.getvalue()
    for place in range(64):
        for value in (0xFF, 0x80, 0x55, 0x00):
            broken = whole[:place] + bytes([value]) + whole[place + 1 :]
            with contextlib.suppress(AudioError):
                is_recording(broken)
                read_mono(broken, start=0.0, duration=min(recording_seconds(broken), 0.02))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2**31 - 1])
def test_a_rate_that_no_sound_has_is_refused(tmp_path: Path, rate: int) -> None:
    """Of one sample a second, a second of sound would make hours."""
    soundfile.write(tmp_path / "a.wav", tone(1.0), RATE, subtype="PCM_16")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    for read in (recording_seconds, lambda source: read_mono(source, start=0.0, duration=1.0)):
        with pytest.raises(AudioError, match=f"has {rate:,} samples a second by its header"):
            read(bytes(content))


def test_a_sample_too_many_in_a_header_is_no_cut(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.au", tone(1.0), RATE, format="AU", subtype="PCM_16")
    content = bytearray((tmp_path / "a.au").read_bytes())
    content[8:12] = (2 * RATE + 2).to_bytes(4, "big")
    assert len(read_mono(bytes(content), start=0.0, duration=1.0)[0]) == RATE


@pytest.mark.parametrize("rate", [44_100, 96_000, 384_000])
@pytest.mark.parametrize(("hz", "level", "heard"), [(440, 1e-4, True), (15_000, 1, False)])
def test_a_sound_that_is_too_high_for_the_new_rate_is_silence(
    tmp_path: Path, rate: int, hz: int, level: float, heard: bool
) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate, hz) * np.hanning(rate) * level, rate, subtype="FLOAT")
    assert bool(read_wave(tmp_path / "a.wav", start=0, duration=1.0, sample_rate=16_000).any()) == heard
