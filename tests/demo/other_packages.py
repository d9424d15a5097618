"""Scenes of recordings from packages that no part of the demo uses, to ask a trained demo about.

    python -m tests.demo.other_packages --root data/demo          # other.jsonl, beside the demo's own sets
    torchrun --nproc_per_node 2 tools/evaluate.py --config configs/demo.yaml stage=long \\
        data.datasets.test.manifest=other.jsonl --rows test --output tried

They are mixed as the demo's own test is, of the twelve kinds that the packages have enough of (no footsteps, one wood
block).
"""

import argparse
import json
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_af.config import SceneSet
from megatron_af.demo.recordings import MAX_SECONDS, SAMPLE_RATE, SUSTAIN_SECONDS, SUSTAINED, Recording, Waveform
from megatron_af.demo.recordings import _chunks as chunks
from megatron_af.demo.recordings import _file as sound_file
from megatron_af.demo.recordings import _resample as resample
from megatron_af.demo.recordings import _store as store
from megatron_af.demo.recordings import _trim as trim
from megatron_af.demo.recordings import _unpack as unpack
from megatron_af.demo.scenes import _render as render

SOUNDFONT, DRUMS, VOICES = "timgm6mb-soundfont", "hydrogen-drumkits", "asterisk-core-sounds-fr-gsm"
KINDS = {
    "bass": {SOUNDFONT: r"(Slap|Fretless|Pick|Fingered|Acoustic) Bass"},
    "bells": {SOUNDFONT: r"musicbox|Glockenspiel|Celesta"},
    "choir": {SOUNDFONT: r"Aahs|Choir-|Doo "},
    "cymbal": {
        SOUNDFONT: r"ChinaCrash|Med Crash|Ride (Ping|Bell)",
        DRUMS: r"ride|crash|RD\d?|Ride|Crash|China|Splash",
    },
    "flute": {SOUNDFONT: r"Flute|Recorder|Piccolo|Pan Flute"},
    "guitar": {SOUNDFONT: r"(Dist|OD) Gtr"},
    "kick": {SOUNDFONT: r"Kick|Bass Drum", DRUMS: r"(bd|BD)\d?_|Kick"},
    "organ": {SOUNDFONT: r"Church Org"},
    "piano": {SOUNDFONT: r"Piano|CP70"},
    "saxophone": {SOUNDFONT: r"Alto|Tenor|Bari|Sop"},
    "snare": {SOUNDFONT: r"(Brush |808 |E )?Snare", DRUMS: r"(SN\d?|sd|[rj]snare)_|Snare-"},
    "voice": {VOICES: r"(vm|conf|queue|agent|demo|dir)-[a-z]+\.gsm$"},
}
"""Kind -> package -> how its names begin, as in ``megatron_af/demo/recordings.py``."""
NAME, LEAST, SEED = "other", 3, 1


def recordings(folder: Path) -> list[tuple[str, str, Waveform]]:
    """Kind, name and sound of what the packages hold."""
    with tempfile.TemporaryDirectory() as scratch:
        packages = (SOUNDFONT, DRUMS, VOICES)
        if unpack(packages, Path(scratch)) != list(packages):
            raise SystemExit(f"the packages {', '.join(packages)} cannot be had: this needs apt-get and its archive")
        found = [sound for package in packages for sound in _sounds(package, Path(scratch) / package)]
    return list({x.tobytes(): (kind, name, x) for kind, name, x in found}.values())


def _sounds(package: str, folder: Path) -> Iterator[tuple[str, str, Waveform]]:
    rules = [(kind, re.compile(by[package])) for kind, by in KINDS.items() if package in by]
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".flac", ".ogg", ".wav", ".gsm", ".sf2"}):
        for name, x in _soundfont(path, rules) if path.suffix == ".sf2" else sound_file(path, rules):
            kind = next(kind for kind, rule in rules if rule.match(name))
            x = trim(x)[: round(MAX_SECONDS * SAMPLE_RATE)]
            if len(x) >= 0.05 * SAMPLE_RATE and np.abs(x).max() > 1e-3:
                yield kind, f"{package}: {name}", x


def _soundfont(path: Path, rules: list[tuple[str, re.Pattern[str]]]) -> Iterator[tuple[str, Waveform]]:
    """Samples of a SoundFont 2: 16-bit numbers, whose places the headers give (SoundFont 2.04 specification, 7.10)."""
    data = path.read_bytes()
    held = dict(chunks(data, 12, len(data)))
    sound = np.frombuffer(data[slice(*held[b"smpl"])], "<i2").astype(np.float32) / 32768
    begin, end = held[b"shdr"]
    for at in range(begin, end - 46, 46):
        raw, start, stop, loop_start, loop_stop, rate = struct.unpack("<20s5I", data[at : at + 40])
        name = raw.split(b"\0")[0].decode("latin-1")
        kind = next((kind for kind, rule in rules if rule.match(name)), "")
        if kind:
            x = sound[start:stop]
            if kind in SUSTAINED and loop_stop - loop_start > 0.02 * rate:
                rounds = max(0, -(-(round(SUSTAIN_SECONDS * rate) - (loop_stop - start)) // (loop_stop - loop_start)))
                x = np.concatenate([sound[start:loop_stop], *[sound[loop_start:loop_stop]] * rounds])
            yield name, resample(x, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="data.root of the demo")
    parser.add_argument("--scenes", type=int, default=300)
    options = parser.parse_args()
    place = options.root / NAME
    (place / "recordings").mkdir(parents=True)
    sounds = recordings(place)
    count = Counter(kind for kind, *_ in sounds)
    by_kind: dict[str, list[Recording]] = {kind: [] for kind in sorted(count) if count[kind] >= LEAST}
    for number, (kind, name, x) in enumerate(sounds):
        if kind in by_kind:
            by_kind[kind].append(store(place / "recordings", number, kind, name, x))
    scenes = SceneSet(part="test", scenes=options.scenes)
    _, rows = render(scenes, 1, SEED, place, by_kind, "scenes", np.arange(options.scenes))
    lines = [json.loads(row) for row in rows]
    for line in lines:
        line["clips"] = [clip | {"path": f"{NAME}/{clip['path']}"} for clip in line["clips"]]
    (options.root / f"{NAME}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    listed = {kind: [asdict(item)["source"] for item in items] for kind, items in by_kind.items()}
    (place / "recordings.json").write_text(json.dumps(listed, indent=1))
    print(f"{sum(map(len, by_kind.values()))} recordings of {len(by_kind)} kinds: {dict(count)}")


if __name__ == "__main__":
    main()
