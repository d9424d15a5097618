"""Sound out of FFmpeg's containers: parts at their place, lengths where none is stated, one kind of error."""

import re
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from dali_pipes.containers import ContainerError, decode, length_note, seconds, tracks_note
from tests.dali_pipes.tones import ENCODED_RATE, encoded


def pitch(wave: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(spectrum.argmax() * rate / len(wave))


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.webm", "libopus"), ("a.mp3", "libmp3lame")])
@pytest.mark.parametrize("seek", [True, False])
def test_a_part_is_the_part_that_was_asked_for(tmp_path: Path, name: str, codec: str, seek: bool) -> None:
    encoded(tmp_path / name, codec, 6.0)
    wave_TC, rate = decode(tmp_path / name, start=3.0, duration=0.5, seek=seek)
    assert rate == ENCODED_RATE and wave_TC.shape == (ENCODED_RATE // 2, 1) and wave_TC.dtype == np.float32
    assert wave_TC.flags.c_contiguous
    assert pitch(wave_TC[:, 0], rate) == pytest.approx(300 + 100 * 3.25, abs=5)


def test_channels_stay_apart_and_bytes_read_like_a_file(tmp_path: Path) -> None:
    encoded(tmp_path / "a.m4a", "aac", 1.0, channels=2)
    from_file, _ = decode(tmp_path / "a.m4a", start=0.0, duration=9.0)
    from_bytes, _ = decode((tmp_path / "a.m4a").read_bytes(), start=0.0, duration=9.0)
    assert from_file.shape[1] == 2 and abs(len(from_file) - ENCODED_RATE) < 2500  # not more than there is
    assert np.corrcoef(from_file[2000:40_000].T)[0, 1] < -0.9
    assert np.array_equal(from_file, from_bytes)


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.webm", "libopus"), ("a.mp3", "libmp3lame")])
def test_the_length_is_the_containers(tmp_path: Path, name: str, codec: str) -> None:
    encoded(tmp_path / name, codec, 2.5)
    assert seconds(tmp_path / name) == pytest.approx(2.5, abs=0.08)


def short(path: Path, *boxes: bytes) -> Path:
    """An MP4 whose boxes state a third of their lengths (ISO/IEC 14496-12: version, times, and a length at last)."""
    data = bytearray(path.read_bytes())
    for box in boxes:
        place = data.index(box) + 4 + {b"mvhd": 16, b"tkhd": 20, b"mdhd": 16, b"elst": 8}[box]
        data[place : place + 4] = (int.from_bytes(data[place : place + 4]) // 3).to_bytes(4)
    changed = path.with_name(f"{len(boxes)}-{boxes[0].decode()}.m4a")
    changed.write_bytes(data)
    return changed


def test_an_mp4_is_as_long_as_the_packets_that_it_lists(tmp_path: Path) -> None:
    encoded(tmp_path / "a.m4a", "aac", 6.0)
    whole, _ = decode(tmp_path / "a.m4a", start=0.0, duration=9.0)
    assert length_note(tmp_path / "a.m4a") == ""
    for boxes in ([b"mdhd"], [b"mvhd", b"tkhd", b"mdhd"]):
        path = short(tmp_path / "a.m4a", *boxes)
        assert seconds(path) == seconds(path.read_bytes()) == pytest.approx(6.0, abs=0.08)
        assert re.fullmatch(r"its header states 2.0\d s; the 6.0\d s that are there were read", length_note(path))
        part, rate = decode(path, start=4.0, duration=1.0)
        assert np.allclose(part, whole[4 * rate : 5 * rate], atol=1e-4)  # the codec has no past


def test_what_an_edit_leaves_out_is_not_there(tmp_path: Path) -> None:
    """Phones cut a recording by its list of edits alone."""
    encoded(tmp_path / "a.m4a", "aac", 6.0)
    path = short(tmp_path / "a.m4a", b"elst")
    assert seconds(path) == pytest.approx(2.0, abs=0.08) and length_note(path) == ""


def test_everything_that_is_no_sound_is_one_kind_of_error(tmp_path: Path) -> None:
    (tmp_path / "text.m4a").write_text("not audio at all " * 50)
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    for name, problem in [("text.m4a", "it is text"), ("missing.m4a", "does not exist"), ("silent.mp4", "no audio")]:
        with pytest.raises(ContainerError, match=problem):
            decode(tmp_path / name, start=0.0, duration=1.0)
        with pytest.raises(ContainerError, match=problem):
            seconds(tmp_path / name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("name", ["a.ts", "b.vob"])
def test_a_stream_that_states_no_length_is_read_to_its_last_frame(tmp_path: Path, name: str) -> None:
    """Broadcast streams put several frames of sound into one packet, and say when that begins."""
    sound = ["-f", "lavfi", "-i", "sine=440:duration=3", "-ar", "48000", "-c:a", {"a.ts": "aac", "b.vob": "mp2"}[name]]
    subprocess.run(["ffmpeg", "-v", "error", *sound, str(tmp_path / name)], check=True)
    with av.open(str(tmp_path / name)) as container:
        there = sum(frame.samples for frame in container.decode(container.streams.audio[0]))
    assert there >= 3 * 48_000 and seconds(tmp_path / name) == pytest.approx(there / 48_000, abs=2e-3)
    wave_TC, rate = decode(tmp_path / name, start=0.0, duration=seconds(tmp_path / name))
    assert abs(len(wave_TC) - there) <= 0.002 * rate


def rising(path: Path, *options: str, before: tuple[str, ...] = ()) -> Path:
    """Eight seconds of a tone that rises, by the program, which writes more kinds of files than its libraries do."""
    sound = ["-f", "lavfi", "-i", "aevalsrc=0.4*sin(2*PI*(300*t+50*t*t)):d=8:s=16000"]
    subprocess.run(["ffmpeg", "-v", "error", *before, *sound, *options, str(path)], check=True)
    return path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ogg", "-c:a flac -ar 48000"),
        ("a.wav", "-c:a g722"),
        ("b.wav", "-c:a adpcm_yamaha"),
        ("a.vob", "-c:a ac3 -ar 48000"),
    ],
)
def test_a_part_lies_where_it_does_in_the_whole(tmp_path: Path, name: str, options: str) -> None:
    """FFmpeg seeks in these to another place than it says."""
    path = rising(tmp_path / name, *options.split())
    whole_TC, rate = decode(path, start=0.0, duration=9.0)
    for start in (1.0, 4.0, 6.0, 6.5, 7.0, 7.5):
        part_TC, _ = decode(path, start=start, duration=0.25)
        assert len(part_TC) == round(0.25 * rate)
        same_TC = whole_TC[round(start * rate) :][: len(part_TC)]
        assert np.corrcoef(part_TC[:, 0], same_TC[:, 0])[0, 1] > 0.99, start


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize(
    ("name", "before", "options"),
    [
        ("a.mkv", "-f lavfi -i testsrc=duration=10:size=64x64:rate=5", "-c:a aac -ar 48000"),
        ("a.wmv", "-f lavfi -i testsrc=duration=10:size=64x64:rate=5", "-c:a wmav2"),
        ("a.avi", "-f lavfi -i testsrc=duration=10:size=64x64:rate=5 -itsoffset 2", "-c:a libmp3lame"),
        ("a.aac", "", "-c:a aac -q:a 2 -af volume=enable='gt(t,4)':volume=0"),
    ],
)
def test_the_length_is_that_of_the_sound(tmp_path: Path, name: str, before: str, options: str) -> None:
    """Not of the pictures, not by a bit rate, and not shorter by what a clock of milliseconds rounds off."""
    path = rising(tmp_path / name, *options.split(), before=tuple(before.split()))
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        there = sum(frame.samples for frame in container.decode(stream)) / stream.codec_context.sample_rate
    assert seconds(path) == pytest.approx(there, abs=0.06)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_packets_that_say_no_length_are_decoded(tmp_path: Path) -> None:
    path = rising(tmp_path / "a.ts", "-c:a", "s302m", "-strict", "-2", "-ar", "48000", "-ac", "2")
    assert seconds(path) == pytest.approx(8.0, abs=0.05)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.ogg", "libopus"), ("a.avi", "libmp3lame")]
)
def test_of_several_tracks_the_first_is_read_and_said(tmp_path: Path, name: str, codec: str) -> None:
    encoded(tmp_path / name, codec, 1.0, tracks=("eng", "deu", ""))
    told = tracks_note(tmp_path / name)
    names = "track 0, track 1" if name == "a.avi" else "eng, deu"  # FFmpeg writes no languages there
    assert told.startswith(f"it has 3 tracks of sound ({names}, ") and told.endswith("; the first was read")
    wave_TC, rate = decode(tmp_path / name, start=0.2, duration=0.5)
    assert pitch(wave_TC[:, 0], rate) == pytest.approx(300 + 100 * 0.45, abs=5)
    encoded(tmp_path / f"one-{name}", codec, 1.0, tracks=("eng",))
    assert tracks_note(tmp_path / f"one-{name}") == "" == tracks_note(b"RIFF") == tracks_note(b"no sound")
