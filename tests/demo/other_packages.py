"""Scenes of recordings from packages that no part of the demo uses, to ask a trained demo about.

    python -m tests.demo.other_packages --root data/demo          # other.jsonl, beside the demo's own sets
    torchrun --nproc_per_node 2 tools/evaluate.py --config configs/demo.yaml stage=long \\
        data.datasets.test.manifest=other.jsonl --rows test --output tried

They are mixed as the demo's own test is, of the twelve kinds that the packages have enough of (no footsteps, one wood
block).
"""

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_af.config import SceneSet
from megatron_af.demo.recordings import Recording, Waveform
from megatron_af.demo.recordings import _sounds as sounds_of
from megatron_af.demo.recordings import _store as store
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


def recordings() -> list[tuple[str, str, Waveform]]:
    """Kind, name and sound of what the packages hold."""
    with tempfile.TemporaryDirectory() as scratch:
        packages = (SOUNDFONT, DRUMS, VOICES)
        if unpack(packages, Path(scratch)) != list(packages):
            raise SystemExit(f"the packages {', '.join(packages)} cannot be had: this needs apt-get and its archive")
        found = [sound for package in packages for sound in sounds_of(package, Path(scratch) / package, KINDS)]
    return list({x.tobytes(): (kind, name, x) for kind, name, x in found}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="data.root of the demo")
    parser.add_argument("--scenes", type=int, default=300)
    options = parser.parse_args()
    place = options.root / NAME
    (place / "recordings").mkdir(parents=True)
    sounds = recordings()
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
