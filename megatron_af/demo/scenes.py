"""Scenes for the demo: real recordings, augmented and mixed into recordings whose truth is known.

    prepare_scenes(config.scenes, config.seed, Path(config.data.root), progress)

Recordings are split first (by recording, within each kind), and a scene draws from one part only: no held-out
scene holds a recording that training heard. Everything is a function of the seed; work is shared by all cores.
"""

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from megatron_af.config import ConfigError, ScenesConfig, SceneSet
from megatron_af.cores import usable_cores
from megatron_af.data import templates
from megatron_af.data.rows import Clip, Question, Row, parse_row, to_json
from megatron_af.demo.questions import (
    NUMBERS,
    Event,
    Scene,
    ask,
    captions,
    dialogue,
    listing,
    negatives,
    spans,
    transcript,
)
from megatron_af.demo.recordings import SAMPLE_RATE, Recording, Recordings, Waveform, fetch_recordings, load
from megatron_af.demo.skills import skill_rows, told_apart
from megatron_af.files import write
from megatron_af.processes import processes
from megatron_af.progress import Progress
from megatron_af.text import words

PARTS = {"train": 0.65, "development": 0.1, "test": 0.25}
"""Share of each kind's recordings."""
SHORT_SECONDS, LONG_SECONDS = (0.4, 0.8), (1.6, 2.6)
PAUSE_SECONDS = (0.02, 0.1)
"""Between the hits of one long event."""
LOUD_DB, QUIET_DB, NOISE_DB = (-14.0, -10.0), (-34.0, -30.0), (-75.0, -60.0)
"""Level of an event's loudest 100 ms, and of the background noise, in dB of full scale."""
GAP_SECONDS = 0.4
"""Least silence between two events."""
HEARD = 0.95
"""Share of the scenes that are only told in which there is a sound."""


def prepare_scenes(config: ScenesConfig, seed: int, root: Path, progress: Progress) -> Recordings:
    """Write every set's scenes and manifest, the same scenes in conversation (``NAME_dialogue``) and, if wanted, asked
    what the papers' generators ask (``NAME_skills``; neither of a set with silent ones), the text-only manifests and
    the tokenizer; returns the recordings used.

    Raises:
        ConfigError: ``scenes.kinds`` names a kind that there is no recording of, or a set's scenes cannot be mixed.
    """
    if problems := [f"scenes.sets.{name}.{told}" for name, s in config.sets.items() for told in _never_mixed(s)]:
        raise ConfigError("no such scenes", problems)
    progress.update("recordings", 0, 1)
    recordings = fetch_recordings(root / "recordings", offline=config.offline)
    progress.update("recordings", 1, 1)
    known = {item.kind for item in recordings.items}
    if missing := set(config.kinds) - known:
        raise ConfigError("no such sounds", [f"scenes.kinds: {min(missing)} is none of {', '.join(sorted(known))}"])
    parts = split([item for item in recordings.items if item.kind in (config.kinds or known)], seed)
    kinds = sorted(parts["train"])
    jobs = [
        partial(_render, s, config.variants, seed, root, parts[s.part], name, chunk)
        for name, s in config.sets.items()
        for chunk in np.array_split(np.arange(s.scenes), max(1, s.scenes // 250))
    ]
    lines: dict[str, list[str]] = {name: [] for name in config.sets}
    with processes(min(len(jobs), usable_cores())) as pool:
        for done, (name, rows) in enumerate(pool.map(_call, jobs), 1):
            lines[name] += rows
            progress.update("scenes", done, len(jobs))
    told = list(_texts(config, seed, kinds))
    lines["text"] = [to_json(row) for row, *_ in told]
    talks, skills = dict[str, list[Row]](), dict[str, list[Row]]()
    for name, scene_set in config.sets.items():
        if scene_set.min_events:
            mixed = [(row, scene_of(row), "") for row in map(_row, lines[name])]
            talks[f"{name}_dialogue"] = [in_dialogue(row, scene, seed) for row, scene, _ in mixed]
            if config.skills:
                skills[f"{name}_skills"] = skill_rows(mixed, seed, own=scene_set.part == "train")
    if config.skills:
        skills["text_skills"] = skill_rows(told, seed, own=True)
    for name, made in (talks | skills).items():
        write(root / f"{name}.jsonl", "".join(to_json(row) + "\n" for row in made))
    for name, written in lines.items():
        write(root / f"{name}.jsonl", "".join(line + "\n" for line in written))
    _write_words(root / "tokenizer.json", kinds, lines, talks, skills)
    return recordings


def _write_words(
    file: Path,
    kinds: Sequence[str],
    lines: Mapping[str, Sequence[str]],
    talks: Mapping[str, Sequence[Row]],
    skills: Mapping[str, Sequence[Row]],
) -> None:
    """The tokenizer: words of the scenes, behind them those of conversations, and behind these those of the papers'
    questions: ids of the first stay what they are, whatever is asked besides."""
    some = [json.loads(line) for rows in lines.values() for line in rows[:1_000]]
    told = (part for row in some for part in [row, *row.get("spans", [])])
    written = (text for part in told for text in part.get("captions", []) + part.get("negatives", []))
    asked = (text for row in some for q in row["questions"] for text in (q["prompt"], q["output"]))
    said = (turn.prompt for rows in talks.values() for row in rows[:1_000] for turn in row.questions)
    taught = (text for rows in skills.values() for row in rows for q in row.questions for text in (q.prompt, q.output))
    scenes = words.build([*NUMBERS, *kinds, *written, *asked])
    talked = words.extend(scenes, [templates.WORDS, *said])[0]
    words.extend(talked, taught)[0].save(str(file))


def _never_mixed(s: SceneSet) -> Iterator[str]:
    """Keys of a set whose scenes would be drawn for ever, and what is wrong with them."""
    if s.min_events > s.max_events:
        yield f"min_events: {s.min_events} is above max_events, {s.max_events}; raise that"
    if s.min_seconds > s.max_seconds:
        yield f"min_seconds: {s.min_seconds:g} is above max_seconds, {s.max_seconds:g}; raise that"
    needed = s.min_events * (SHORT_SECONDS[0] + GAP_SECONDS)  # what does not fit is drawn again, number and length
    if needed >= s.max_seconds:
        yield f"min_events: {s.min_events} of the shortest sounds need {needed:g} s; lower it, or raise max_seconds"


def scene_of(row: Row) -> Scene:
    """The truth of a manifest's row."""
    return Scene(seconds=row.clips[0].duration, events=tuple(Event(**event) for event in row.meta["events"]))


def _row(line: str) -> Row:
    return parse_row(json.loads(line), "a scene")


def in_dialogue(row: Row, scene: Scene, seed: int) -> Row:
    """The row's recording in conversation."""
    turns = dialogue(scene, random.Random(f"{seed} dialogue {row.id}"))
    return Row(id=row.id, clips=row.clips, questions=turns, task="dialog", template="dialogue")


def split(items: Sequence[Recording], seed: int) -> dict[str, dict[str, list[Recording]]]:
    """part -> kind -> recordings; every kind has at least one recording in every part."""
    parts: dict[str, dict[str, list[Recording]]] = {part: {} for part in PARTS}
    for kind in sorted({item.kind for item in items}):
        rest = sorted((item for item in items if item.kind == kind), key=lambda item: item.path)
        random.Random(f"{seed} {kind}").shuffle(rest)
        total = len(rest)
        for part in ("test", "development"):
            size = max(1, round(total * PARTS[part]))
            parts[part][kind], rest = rest[:size], rest[size:]
        parts["train"][kind] = rest
    return parts


def _call(job: partial[tuple[str, list[str]]]) -> tuple[str, list[str]]:
    return job()


def _render(
    scene_set: SceneSet,
    variants: int,
    seed: int,
    root: Path,
    recordings: dict[str, list[Recording]],
    name: str,
    numbers: NDArray[np.int64],
) -> tuple[str, list[str]]:
    training = scene_set.part == "train"
    kinds = sorted(recordings)
    rows = []
    (root / name).mkdir(exist_ok=True)
    bank = Bank(root / "recordings", recordings, variants=variants if training else 1)
    for number in numbers.tolist():
        key = [seed, number, *name.encode()]
        rng, text_rng = np.random.default_rng(key), random.Random(str(key))
        waveform, scene = mix(bank, scene_set, rng)
        path = f"{name}/{number:05d}.flac"
        soundfile.write(root / path, waveform, SAMPLE_RATE, subtype="PCM_16", compression_level=0.0)
        questions = ask(scene, kinds, text_rng, scene_set.questions) + (listing(scene, text_rng) if training else [])
        row = Row(
            id=f"{name}-{number}",
            clips=(Clip(path=path, duration=len(waveform) / SAMPLE_RATE),),
            questions=tuple(questions),
            captions=captions(scene, text_rng, 2),
            negatives=negatives(scene, kinds, text_rng, 6),
            spans=spans(scene, kinds, text_rng),
            meta={"events": [dataclasses.asdict(event) for event in scene.events]},
        )
        rows.append(to_json(row))
    return name, rows


class Bank:
    """Recordings of one part, augmented when first asked for."""

    def __init__(self, folder: Path, recordings: dict[str, list[Recording]], *, variants: int) -> None:
        self.folder, self.recordings, self.variants = folder, recordings, variants
        self.kinds = sorted(recordings)
        self._loaded: dict[str, Waveform] = {}
        self._augmented: dict[tuple[str, int], Waveform] = {}
        self._white = np.random.default_rng(0).standard_normal(1 << 20)
        spectrum = np.fft.rfft(self._white)
        pink = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)))
        self._pink = pink / pink.std()

    def draw(self, kind: str, rng: np.random.Generator) -> Waveform:
        items = self.recordings[kind]
        item = items[int(rng.integers(len(items)))]
        key = item.path, int(rng.integers(self.variants))
        if key not in self._augmented:
            if item.path not in self._loaded:
                self._loaded[item.path] = load(self.folder, item)
            own = np.random.default_rng([key[1], *item.path.encode()])
            self._augmented[key] = augment(self._loaded[item.path], own, strong=self.variants > 1)
        return self._augmented[key]

    def noise(self, size: int, rng: np.random.Generator) -> Waveform:
        """Background between white and pink."""
        a, b = rng.integers(len(self._white) - size, size=2)
        share, gain = rng.uniform(), 10 ** (rng.uniform(*NOISE_DB) / 20)
        mixed = (1 - share) * self._white[a : a + size] + share * self._pink[b : b + size]
        return np.asarray(gain * mixed, dtype=np.float32)


def augment(x: Waveform, rng: np.random.Generator, *, strong: bool) -> Waveform:
    """Another take of the same source: pitch and speed, spectral tilt and one resonance; loudest 100 ms at 0 dB."""
    stretch = np.exp(rng.uniform(-0.35, 0.35) if strong else rng.uniform(-0.03, 0.03))
    x = x[: round(LONG_SECONDS[1] * stretch * SAMPLE_RATE) + 1]
    x = np.interp(np.arange(0, len(x) - 1, stretch), np.arange(len(x)), x).astype(np.float32)
    if strong:
        spectrum = np.fft.rfft(x, 1 << len(x).bit_length())
        octave = np.log2(np.linspace(1e-3, 1, len(spectrum)))
        bump = np.exp(-(((octave - rng.uniform(-6, 0)) / 0.8) ** 2))
        gain_db = np.clip(rng.normal() * 2 * (octave + 3) + rng.normal() * 4 * bump, -18, 18)
        x = np.fft.irfft(spectrum * 10 ** (gain_db / 20))[: len(x)].astype(np.float32)
    return x / np.float32(_level(x))


def _level(x: Waveform) -> float:
    """RMS of the loudest 100 ms: short and long sounds become comparable."""
    size = SAMPLE_RATE // 10
    power = np.cumsum(np.concatenate([[0.0], x.astype(np.float64) ** 2]))
    loudest = (power[size:] - power[:-size]).max() if len(x) > size else power[-1]
    return float(np.sqrt(loudest / size) + 1e-9)


def mix(bank: Bank, scene_set: SceneSet, rng: np.random.Generator) -> tuple[Waveform, Scene]:
    """One scene: waveform and truth."""
    while True:
        seconds = float(rng.uniform(scene_set.min_seconds, scene_set.max_seconds))
        sequence = _sequence(bank.kinds, int(rng.integers(scene_set.min_events, scene_set.max_events + 1)), rng)
        drawn = {kind: _shaped(bank.draw(kind, rng), rng) for kind in dict.fromkeys(sequence)}
        loud = {kind: rng.random() < 0.5 for kind in drawn}
        if sequence:
            loud[sequence[int(rng.integers(len(sequence)))]] = True  # quiet is relative to something
        sounds = {
            kind: (x * np.float32(10 ** (rng.uniform(*(LOUD_DB if loud[kind] else QUIET_DB)) / 20)), long)
            for kind, (x, long) in drawn.items()
        }
        free = seconds - sum(len(sounds[kind][0]) / SAMPLE_RATE + GAP_SECONDS for kind in sequence)
        if free > 0:
            break
    gaps = rng.dirichlet(np.ones(len(sequence) + 1)) * free
    waveform = bank.noise(round(seconds * SAMPLE_RATE), rng)
    events, at = [], 0.0
    for gap, kind in zip(gaps, sequence, strict=False):
        x, long = sounds[kind]
        begin = round((at + gap) * SAMPLE_RATE)
        waveform[begin : begin + len(x)] += x
        start, end = begin / SAMPLE_RATE, (begin + len(x)) / SAMPLE_RATE
        events.append(Event(kind=kind, start=start, end=end, loud=loud[kind], long=long))
        at = end + GAP_SECONDS
    return np.clip(waveform, -1, 1), Scene(seconds=seconds, events=tuple(events))


def _sequence(kinds: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    """Kinds in order: half of the time all different, else some return."""
    if not number:
        return []
    different = number if rng.random() < 0.5 else int(rng.integers(1, number + 1))
    chosen = [kinds[i] for i in rng.choice(len(kinds), different, replace=False)]
    again = chosen[:1] if rng.random() < 0.5 else chosen
    sequence = chosen + [again[int(rng.integers(len(again)))] for _ in range(number - different)]
    return [sequence[i] for i in rng.permutation(number)]


def _shaped(x: Waveform, rng: np.random.Generator) -> tuple[Waveform, bool]:
    """A short or a long event with soft ends, and which of the two it is; what is too short for a long one, a step
    or a hit, is repeated quickly."""
    long = rng.random() < 0.5
    size = round(rng.uniform(*(LONG_SECONDS if long else SHORT_SECONDS)) * SAMPLE_RATE)
    if long and len(x) < LONG_SECONDS[0] * SAMPLE_RATE:
        x = np.concatenate([x, np.zeros(round(rng.uniform(*PAUSE_SECONDS) * SAMPLE_RATE), dtype=np.float32)])
        x = np.tile(x, -(-size // len(x)))
    x = x[:size].copy()
    rise, fall = min(len(x) // 8, 80), min(len(x) // 4, 1600)
    x[:rise] *= np.linspace(0, 1, rise, dtype=np.float32)
    x[-fall:] *= np.linspace(1, 0, fall, dtype=np.float32)
    return x, long


def _texts(config: ScenesConfig, seed: int, kinds: Sequence[str]) -> Iterator[tuple[Row, Scene, str]]:
    """Scenes that are only told: a transcript in front of every question, so that a language model that has
    never heard anything learns to answer from a description. With the scene, and what stands before a question."""
    for number in range(config.texts):
        rng, text_rng = np.random.default_rng([seed, number]), random.Random(f"{seed} text {number}")
        scene = _told(kinds, rng)
        told = transcript(scene)
        # A quarter is asked with nothing told: before it hears, the model must know how likely each answer is.
        before = f"{told}. " if number % 4 else ""
        questions = [
            Question(prompt=before + q.prompt, output=q.output, skill=q.skill)
            for q in [*ask(scene, kinds, text_rng, 6), *listing(scene, text_rng)]
        ]
        yield Row(id=f"text-{number}", questions=tuple(questions), task="text"), told_apart(scene), before


def _told(kinds: Sequence[str], rng: np.random.Generator) -> Scene:
    sequence = _sequence(kinds, int(rng.integers(1, 6)) if rng.random() < HEARD else 0, rng)
    loud = {kind: bool(rng.random() < 0.5) for kind in sequence}
    long = {kind: bool(rng.random() < 0.5) for kind in sequence}
    times = np.sort(rng.uniform(0, 10, len(sequence))).tolist()
    events = (Event(kind=k, start=t, end=t, loud=loud[k], long=long[k]) for k, t in zip(sequence, times, strict=True))
    return Scene(seconds=10.0, events=tuple(events))
