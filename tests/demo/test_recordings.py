"""Sources of the demo's scenes: fetched once, synthesised where asked for, samples of a SoundFont at their place."""

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_af.demo import recordings
from megatron_af.demo.recordings import SAMPLE_RATE, SUSTAIN_SECONDS, fetch_recordings, load
from megatron_af.demo.synthesis import VOICES


def test_they_are_made_once_and_say_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = [("bell", "here", np.full(1600, 0.5, np.float32)), ("dog", "there", np.full(800, 0.25, np.float32))]
    monkeypatch.setattr(recordings, "_from_packages", lambda: ("two recordings", sounds))
    folder = tmp_path / "r"
    found = fetch_recordings(folder)
    assert found.source == "two recordings" and [item.kind for item in found.items] == ["bell", "dog"]
    assert [(item.seconds, item.source) for item in found.items] == [(0.1, "here"), (0.05, "there")]
    np.testing.assert_allclose(load(folder, found.items[1]), sounds[1][2], atol=1e-4)
    monkeypatch.setattr(recordings, "_from_packages", lambda: pytest.fail("asked again"))
    assert fetch_recordings(folder) == found
    (folder / "recordings.json").unlink()  # it was never finished: begin anew
    monkeypatch.setattr(recordings, "_from_packages", lambda: ("one", sounds[:1]))
    assert len(fetch_recordings(folder).items) == 1 and len(list(folder.rglob("*.flac"))) == 1


def test_where_packages_give_nothing_sources_are_synthesised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        recordings, "synthesise", lambda rate: [(kind, np.full(800, 0.1, np.float32)) for kind in VOICES]
    )
    monkeypatch.setattr(recordings, "_from_packages", lambda: ("synthesised sources (no apt-get)", []))
    found = fetch_recordings(tmp_path / "r")
    assert found.source == "synthesised sources (no apt-get)" and {i.kind for i in found.items} == set(VOICES)
    monkeypatch.setattr(recordings, "_from_packages", lambda: pytest.fail("asked though offline"))
    assert "asked for" in fetch_recordings(tmp_path / "o", offline=True).source


def test_silence_at_both_ends_goes() -> None:
    wave = np.zeros(16_000, np.float32)
    wave[4000:8000] = 0.5
    kept = recordings._trim(wave)
    assert 4000 <= len(kept) < 5000 and kept.max() == 0.5
    assert len(recordings._trim(wave[:300])) == 300


def soundfont(path: Path, name: bytes, held: bytes, places: tuple[int, int, int, int]) -> None:
    """One sample: where it begins and ends, and its loop, as its version counts them."""
    header = struct.pack("<20s5I", name, *places, SAMPLE_RATE) + bytes(6)
    chunks = b"LIST" + struct.pack("<I", 12 + len(held)) + b"sdta" + b"smpl" + struct.pack("<I", len(held)) + held
    chunks += b"LIST" + struct.pack("<I", 12 + 92) + b"pdta" + b"shdr" + struct.pack("<I", 92) + header + bytes(46)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"sfbk" + chunks)


@pytest.mark.parametrize(("kind", "held"), [("flute", True), ("kick", False)])
def test_a_soundfont_2_is_read_by_its_headers(tmp_path: Path, kind: str, held: bool) -> None:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / SAMPLE_RATE).astype(np.float32)
    pcm = bytes(20) + (wave * 32768).astype("<i2").tobytes()  # behind ten numbers of another sample
    soundfont(tmp_path / "a.sf2", b"Flute C4", pcm, (10, 8010, 2010, 6010))
    ((name, found),) = recordings._soundfont(tmp_path / "a.sf2", [(kind, re.compile("Flute"))])
    assert name == "Flute C4" and (len(found) >= SUSTAIN_SECONDS * SAMPLE_RATE) == held
    np.testing.assert_allclose(found[:6000], wave[:6000], atol=1 / 32768)
    np.testing.assert_allclose(found[6000:8000], wave[2000:4000] if held else wave[6000:], atol=1 / 32768)


@pytest.mark.parametrize(("kind", "held"), [("flute", True), ("kick", False)])
def test_a_soundfonts_note_is_held_by_its_loop(tmp_path: Path, kind: str, held: bool) -> None:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / SAMPLE_RATE).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, wave, SAMPLE_RATE, format="OGG", subtype="VORBIS")
    ogg = b"before" + file.getvalue()
    soundfont(tmp_path / "a.sf3", b"Flute C4", ogg, (6, len(ogg), 2000, 6000))
    ((name, found),) = recordings._soundfont(tmp_path / "a.sf3", [(kind, re.compile("Flute"))])
    assert name == "Flute C4"
    if held:
        assert SUSTAIN_SECONDS * SAMPLE_RATE <= len(found) < SUSTAIN_SECONDS * SAMPLE_RATE + 4000
        np.testing.assert_array_equal(found[6000:10_000], found[2000:6000])
    else:
        assert len(found) == 8000
    assert list(recordings._soundfont(tmp_path / "a.sf3", [(kind, re.compile("Piano"))])) == []
