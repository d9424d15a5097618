"""Real recordings for the demo, by kind of sound, without a model hub and without root.

Debian's free sound packages are fetched with the user's own ``apt-get`` and unpacked with ``dpkg -x`` into a
folder that is removed afterwards. The packages' file names (and the sample names inside the SoundFont) are the
labels. Where packages cannot be had, :mod:`megatron_af.demo.synthesis` makes the sources instead, and
``Recordings.source`` says so.

    recordings = fetch_recordings(Path("data/demo/recordings"))
    print(recordings.source, len(recordings.items))

Licences of what is fetched: fluidr3mono-gm-soundfont MIT; sonic-pi-samples CC0 for the files used;
minetest-data CC-BY-SA; hydrogen-data GPL; asterisk-core-sounds-en-gsm CC-BY-SA. Nothing of it is redistributed.
"""

import io
import json
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from megatron_af.demo.synthesis import synthesise
from megatron_af.files import write
from megatron_af.foreign import read_bytes, read_json

Waveform = NDArray[np.float32]

SAMPLE_RATE = 16_000
MAX_SECONDS = 4.0
SUSTAIN_SECONDS = 3.0
"""Length to which a looped SoundFont note is held, as a sampler would hold it."""
MIN_KINDS, MIN_RECORDINGS = 12, 150

SOUNDFONT = "fluidr3mono-gm-soundfont"
PACKAGES = (SOUNDFONT, "sonic-pi-samples", "minetest-data", "hydrogen-data", "asterisk-core-sounds-en-gsm")

KINDS: dict[str, dict[str, str]] = {
    # kind -> package -> pattern a file's (or a SoundFont sample's) name must match from its beginning. These kinds
    # were chosen because a small classifier tells their unheard recordings apart; tabla and kick, or tom and snare,
    # it does not.
    "bass": {SOUNDFONT: r"(Picked|Finger|Slap) Bass|Fretless|Pop [A-G]"},
    "bells": {SOUNDFONT: r"Glocken|Celesta|Music Box"},
    "choir": {SOUNDFONT: r"Ahh Choir|Ohh Voices"},
    "cymbal": {
        SOUNDFONT: r"Splash|China Crash|Crsh|Ride\d|BellRide|58_\d+_(FULL|HALF)CRASH",
        "sonic-pi-samples": r"drum_splash|drum_cymbal_(hard|soft)|elec_cymbal",
        "hydrogen-data": r"Crash-|Splash-|Ride-|24Ride|808_Cymbal",
    },
    "flute": {SOUNDFONT: r"Flute|Recorder|Piccolo [A-G]|pan flute"},
    "footsteps": {"minetest-data": r"default_(snow|gravel|grass|dirt|sand|hard|wood)_footstep|default_gravel_d"},
    "guitar": {SOUNDFONT: r"Distortion"},
    "kick": {
        SOUNDFONT: r"Std Kick|Power Kick|Room Kick|Elec Kick|808 Kick|Power Bass Drum|57_\d+_BD",
        "sonic-pi-samples": r"bd_|drum_heavy_kick|elec_(soft|hollow)_kick|drum_bass",
        "hydrogen-data": r"Kick-|808_Kick",
    },
    "organ": {SOUNDFONT: r"Church Organ"},
    "piano": {SOUNDFONT: r"P200 Piano"},
    "saxophone": {SOUNDFONT: r"(Alto|Tenor|Baritone|Soprano) [A-G]"},
    "snare": {
        SOUNDFONT: r"Std Snr|Snr \d|Power Snare|Electronic Snr|808 Snare|Orch Snare|Brush Snr",
        "sonic-pi-samples": r"drum_snare|elec_(filt_|hi_|lo_|mid_)?snare|sn_",
        "hydrogen-data": r"Snare-|SnareRim|808_Snare",
    },
    "voice": {"asterisk-core-sounds-en-gsm": r"(vm|conf|queue|agent|demo|dir)-[a-z]+\.gsm$"},
    "woodblock": {SOUNDFONT: r"Temple Block"},
}
SUSTAINED = frozenset({"choir", "flute", "organ", "saxophone"})
"""Kinds whose SoundFont notes are held by their loop."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    kind: str
    path: str
    """Mono FLAC at 16 kHz, relative to the folder of the recordings."""
    seconds: float
    source: str
    """Package and name inside it, or ``synthesised``."""


@dataclass(frozen=True, kw_only=True)
class Recordings:
    source: str
    """What the recordings are and where they come from, in words."""
    items: tuple[Recording, ...]


def fetch_recordings(folder: Path, *, offline: bool = False) -> Recordings:
    """Fill ``folder`` with recordings by kind (done once; later calls only read ``recordings.json``).

    ``offline=True`` synthesises the sources without asking any package archive.
    """
    index = folder / "recordings.json"
    if not index.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        source, sounds = ("synthesised sources (asked for)", []) if offline else _from_packages()
        if not sounds:
            sounds = [(kind, "synthesised", x) for kind, x in synthesise(SAMPLE_RATE)]
        items = [asdict(_store(folder, n, *sound)) for n, sound in enumerate(sounds)]
        write(index, json.dumps({"source": source, "items": items}, indent=1))
    stored = read_json(index)
    return Recordings(source=stored["source"], items=tuple(Recording(**item) for item in stored["items"]))


def load(folder: Path, recording: Recording) -> Waveform:
    x, _ = soundfile.read(folder / recording.path, dtype="float32")
    return np.asarray(x, dtype=np.float32)


def _store(folder: Path, number: int, kind: str, source: str, x: Waveform) -> Recording:
    path = Path(kind) / f"{number:04d}.flac"
    (folder / kind).mkdir(exist_ok=True)
    soundfile.write(folder / path, x, SAMPLE_RATE)
    return Recording(kind=kind, path=str(path), seconds=len(x) / SAMPLE_RATE, source=source)


def _from_packages() -> tuple[str, list[tuple[str, str, Waveform]]]:
    """(what was used, [(kind, source, waveform)]); the list is empty where packages give too little."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return "synthesised sources (no apt-get and dpkg on this machine)", []
    with tempfile.TemporaryDirectory() as scratch:
        used = _unpack(PACKAGES, Path(scratch))
        found = [sound for package in used for sound in _sounds(package, Path(scratch) / package)]
    # the same sound under two names must not end up on both sides of the split
    sounds = list({x.tobytes(): (kind, source, x) for kind, source, x in found}.values())
    kinds = {kind for kind, *_ in sounds}
    full = [kind for kind in kinds if sum(sound[0] == kind for sound in sounds) >= 8]
    sounds = sorted((sound for sound in sounds if sound[0] in full), key=lambda sound: sound[:2])
    if len(full) < MIN_KINDS or len(sounds) < MIN_RECORDINGS:
        return f"synthesised sources (packages gave {len(sounds)} recordings of {len(full)} kinds)", []
    return f"{len(sounds)} recordings of {len(full)} kinds from the packages {', '.join(used)}", sounds


def _unpack(packages: tuple[str, ...], folder: Path) -> list[str]:
    """Download and unpack into ``folder/package`` with an apt state of our own; returns those that could be had."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / "apt" / part).mkdir(parents=True)
    options = {
        "Dir::State": folder / "apt/state",
        "Dir::State::lists": folder / "apt/state/lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "apt/cache",
        "Debug::NoLocking": 1,
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": 2,
        "Acquire::http::Timeout": 20,
    }
    apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
    _run([*apt, "update"], folder, timeout=90)
    used = []
    for package in packages:
        _run([*apt, "download", package], folder, timeout=90)
        archives = list(folder.glob(f"{package}_*.deb"))
        if archives and _run(["dpkg", "-x", str(archives[0]), str(folder / package)], folder, timeout=60):
            used.append(package)
    return used


def _run(command: list[str], folder: Path, *, timeout: float) -> bool:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=timeout).returncode == 0
    except (subprocess.TimeoutExpired, OSError):
        return False


def _sounds(
    package: str, folder: Path, kinds: Mapping[str, Mapping[str, str]] = KINDS
) -> Iterator[tuple[str, str, Waveform]]:
    rules = [(kind, re.compile(by[package])) for kind, by in kinds.items() if package in by]
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".flac", ".ogg", ".wav", ".gsm", ".sf2", ".sf3"}):
        for name, x in _soundfont(path, rules) if path.suffix in (".sf2", ".sf3") else _file(path, rules):
            kind = next(kind for kind, rule in rules if rule.match(name))
            x = _trim(x)[: round(MAX_SECONDS * SAMPLE_RATE)]
            if len(x) >= 0.05 * SAMPLE_RATE and np.abs(x).max() > 1e-3:
                yield kind, f"{package}: {name}", x


def _file(path: Path, rules: list[tuple[str, re.Pattern[str]]]) -> Iterator[tuple[str, Waveform]]:
    if any(rule.match(path.name) for _, rule in rules):
        raw = {"format": "RAW", "subtype": "GSM610", "samplerate": 8000, "channels": 1}
        x, rate = soundfile.read(path, dtype="float32", always_2d=True, **(raw if path.suffix == ".gsm" else {}))
        yield path.name, _resample(x.mean(1), rate)


def _soundfont(path: Path, rules: list[tuple[str, re.Pattern[str]]]) -> Iterator[tuple[str, Waveform]]:
    """Samples of a SoundFont: RIFF whose ``smpl`` chunk holds one Ogg Vorbis stream per sample (SoundFont 3), or 16-bit
    numbers that headers count through (SoundFont 2).

    Chunks are not padded to even lengths in SoundFont 3. Header fields: SoundFont 2.04 specification, 7.10.
    """
    data = read_bytes(path)
    chunks = dict(_chunks(data, 12, len(data)))
    samples, _ = chunks[b"smpl"]
    begin, end = chunks[b"shdr"]
    for at in range(begin, end - 46, 46):
        raw, start, stop, loop_start, loop_stop, rate = struct.unpack("<20s5I", data[at : at + 40])
        name = raw.split(b"\0")[0].decode("latin-1")
        kind = next((kind for kind, rule in rules if rule.match(name)), "")
        if kind:
            if path.suffix == ".sf3":
                x, rate = soundfile.read(io.BytesIO(data[samples + start : samples + stop]), dtype="float32")
            else:
                pcm = data[samples + 2 * start : samples + 2 * stop]
                x = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
                loop_start, loop_stop = loop_start - start, loop_stop - start
            if kind in SUSTAINED and loop_stop - loop_start > 0.02 * rate:
                rounds = max(0, -(-(round(SUSTAIN_SECONDS * rate) - loop_stop) // (loop_stop - loop_start)))
                x = np.concatenate([x[:loop_stop], *[x[loop_start:loop_stop]] * rounds])
            yield name, _resample(x, rate)


def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    while at + 8 <= end:
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"LIST":
            yield from _chunks(data, at + 12, at + 8 + size)
        else:
            yield name, (at + 8, at + 8 + size)
        at += 8 + size


def _resample(x: NDArray[np.float32], rate: int) -> Waveform:
    if rate != SAMPLE_RATE:
        x = soxr.resample(x, rate, SAMPLE_RATE)
    return np.asarray(x, dtype=np.float32)


def _trim(x: Waveform, below_peak_db: float = 40.0) -> Waveform:
    """Without the silence at both ends: quieter than ``below_peak_db`` under the loudest 25 ms."""
    smooth = 400
    if len(x) <= smooth:
        return x
    total = np.cumsum(np.concatenate([[0.0], x.astype(np.float64) ** 2]))
    energy = total[smooth:] - total[:-smooth]
    heard = np.flatnonzero(energy > energy.max() * 10 ** (-below_peak_db / 10))
    return x[heard[0] : heard[-1] + smooth]
