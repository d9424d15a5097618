"""Mixed scenes hold what their truth says, recordings never cross the split, and all of it follows from the seed."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console

from megatron_af.config import ConfigError, ScenesConfig, SceneSet
from megatron_af.data.rows import Manifest
from megatron_af.data.templates import STYLES, render
from megatron_af.demo.recordings import SAMPLE_RATE, Recordings, fetch_recordings, load
from megatron_af.demo.scenes import Bank, _never_mixed, augment, mix, prepare_scenes, split
from megatron_af.progress import Progress
from megatron_af.text.tokenizer import Tokenizer

CONFIG = ScenesConfig(
    offline=True,
    variants=2,
    texts=30,
    skills=True,
    sets={
        "train": SceneSet(part="train", scenes=6),
        "test": SceneSet(part="test", scenes=4, min_seconds=15, max_seconds=20, max_events=7),
        "silent": SceneSet(part="test", scenes=3, min_events=0, max_events=0),
    },
)


def prepare(root: Path) -> Recordings:
    with Progress(Console(file=io.StringIO())) as progress:
        return prepare_scenes(CONFIG, 0, root, progress)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("demo")
    prepare(folder)
    yield folder


def test_synthesised_sources_are_enough(root: Path) -> None:
    recordings = fetch_recordings(root / "recordings")
    assert "synthesised" in recordings.source
    assert len(recordings.items) >= 150
    assert len({item.kind for item in recordings.items}) >= 12
    for item in recordings.items[::20]:
        x = load(root / "recordings", item)
        assert abs(len(x) / SAMPLE_RATE - item.seconds) < 1e-3
        assert 0.1 < np.abs(x).max() <= 1


def test_scenes_of_some_kinds_hold_no_others(root: Path, tmp_path: Path) -> None:
    (tmp_path / "recordings").symlink_to(root / "recordings")
    kinds = tuple(sorted({item.kind for item in fetch_recordings(root / "recordings").items}))[:8]
    config = replace(CONFIG, kinds=kinds, texts=0, sets={"few": SceneSet(part="test", scenes=8, max_events=3)})
    with Progress(Console(file=io.StringIO())) as progress:
        prepare_scenes(config, 0, tmp_path, progress)
        heard = {event["kind"] for row in Manifest(tmp_path / "few.jsonl") for event in row.meta["events"]}
        assert heard and heard <= set(kinds)
        with pytest.raises(ConfigError, match=r"scenes\.kinds: thunder is none of"):
            prepare_scenes(replace(config, kinds=("thunder",)), 0, tmp_path, progress)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"min_events": 3, "max_events": 2}, "min_events: 3 is above max_events, 2"),
        ({"min_seconds": 12.0}, "min_seconds: 12 is above max_seconds, 10"),
        ({"min_events": 13, "max_events": 13}, "min_events: 13 of the shortest sounds need 10.4 s"),
    ],
)
def test_what_cannot_be_mixed_is_refused(tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    sets = {"few": SceneSet(part="test", scenes=1, **wrong)}
    with Progress(Console(file=io.StringIO())) as progress, pytest.raises(ConfigError, match=re.escape(told)):
        prepare_scenes(replace(CONFIG, sets=sets), 0, tmp_path, progress)
    assert not any(tmp_path.iterdir())


def test_what_fits_now_and_then_is_mixed(root: Path) -> None:
    """A number of sounds or a length that do not go together are drawn again."""
    recordings = split(fetch_recordings(root / "recordings").items, seed=0)["test"]
    bank, rng = Bank(root / "recordings", recordings, variants=1), np.random.default_rng(0)
    few = SceneSet(part="test", scenes=1, min_seconds=2, max_seconds=10, max_events=13)
    assert not list(_never_mixed(few))
    assert all(scene.events for _, scene in (mix(bank, few, rng) for _ in range(5)))


def test_parts_share_no_recording(root: Path) -> None:
    items = fetch_recordings(root / "recordings").items
    parts = split(items, seed=0)
    paths = {part: {item.path for kind in by_kind.values() for item in kind} for part, by_kind in parts.items()}
    assert not paths["train"] & paths["test"] and not paths["train"] & paths["development"]
    assert not paths["test"] & paths["development"]
    assert set.union(*paths.values()) == {item.path for item in items}
    assert all(kinds.keys() == parts["train"].keys() for kinds in parts.values())
    assert split(items, seed=1) != parts


def test_sound_is_where_the_truth_says(root: Path) -> None:
    recordings = split(fetch_recordings(root / "recordings").items, seed=0)["test"]
    bank, rng = Bank(root / "recordings", recordings, variants=1), np.random.default_rng(0)
    for _ in range(20):
        waveform, scene = mix(bank, CONFIG.sets["test"], rng)
        assert len(waveform) == round(scene.seconds * SAMPLE_RATE)
        silent = np.ones(len(waveform), dtype=bool)
        for event in scene.events:
            heard = slice(round(event.start * SAMPLE_RATE), round(event.end * SAMPLE_RATE))
            silent[heard] = False
            peak = np.abs(waveform[heard]).max()
            # Level is the RMS of the loudest 100 ms: peaks of short sounds rise far above it, quiet ones never.
            assert peak > 0.05 if event.loud else 0.005 < peak < 0.3
            assert (event.end - event.start > 1) == event.long
        assert np.sqrt(np.mean(waveform[silent] ** 2)) < 0.01
        assert any(event.loud for event in scene.events)
        same = {event.kind: (event.loud, event.long) for event in scene.events}
        assert all(same[event.kind] == (event.loud, event.long) for event in scene.events)


def test_augmentation_keeps_the_level() -> None:
    rng = np.random.default_rng(0)
    x = np.sin(np.arange(SAMPLE_RATE) / 5).astype(np.float32)
    for _ in range(5):
        y = augment(x, rng, strong=True)
        windows = np.lib.stride_tricks.sliding_window_view(y.astype(np.float64) ** 2, SAMPLE_RATE // 10)[::16]
        assert np.sqrt(windows.mean(1).max()) == pytest.approx(1, rel=0.01)
        assert 0.65 * len(x) < len(y) < 1.5 * len(x)


def test_manifests_are_complete(root: Path) -> None:
    tokenizer = Tokenizer.load(root / "tokenizer.json")
    for name, scene_set in CONFIG.sets.items():
        rows = list(Manifest(root / f"{name}.jsonl"))
        assert len(rows) == scene_set.scenes
        for row in rows:
            (clip,) = row.clips
            info = soundfile.info(root / clip.path)
            assert (info.samplerate, info.channels) == (SAMPLE_RATE, 1)
            assert info.duration == pytest.approx(clip.duration)
            assert row.captions and row.negatives and len(row.spans) == 3 * len(row.meta["events"])
            assert ("listing" in {q.skill for q in row.questions}) == (name == "train")
            for text in [*row.captions, *row.negatives, *(q.prompt for q in row.questions)]:
                assert "<unknown>" not in tokenizer.decode(tokenizer.encode(text), skip_special=False)
        if not scene_set.min_events:  # nobody talks about silence
            assert not any(row.meta["events"] for row in rows) and not (root / f"{name}_dialogue.jsonl").exists()
            continue
        talked = list(Manifest(root / f"{name}_dialogue.jsonl"))
        assert [(row.id, row.clips) for row in talked] == [(row.id, row.clips) for row in rows]
        for row, scene in zip(talked, rows, strict=True):
            assert row.template == "dialogue"
            assert row.questions[0].output.split(" then ") == [event["kind"] for event in scene.meta["events"]]
    told = list(Manifest(root / "text.jsonl"))
    assert len(told) == CONFIG.texts and not any(row.clips for row in told)


def test_the_papers_questions_are_asked_about_the_same_scenes(root: Path, tmp_path: Path) -> None:
    """In training behind the scenes' own, of held-out scenes alone, and only where they are wanted; their words stand
    behind all others."""
    tokenizer = Tokenizer.load(root / "tokenizer.json")
    words = set[str]()
    for name, learnt in (("train", True), ("test", False), ("text", True)):
        own = {row.id: row for row in Manifest(root / f"{name}.jsonl")}
        rows = list(Manifest(root / f"{name}_skills.jsonl"))
        assert rows and {row.id for row in rows} <= own.keys() and (not learnt or len(rows) == len(own))
        for row in rows:
            before = own[row.id].questions if learnt else ()
            assert row.clips == own[row.id].clips and row.questions[: len(before)] == before
            skills = row.questions[len(before) :]
            assert skills or learnt
            for question in skills:
                assert question.skill.partition(":")[0] in ("temporal", "counting", "attribute identification", "long")
                assert not tokenizer.unknown_words(question.prompt) and question.output in question.options
                words.update(question.prompt.split())
        assert any(len(row.questions) > (len(own[row.id].questions) if learnt else 0) for row in rows)
    assert not (root / "silent_skills.jsonl").exists()
    first = min(tokenizer.encode(word)[0] for word in ("begin", "begins") if word in words)
    assert first > max(tokenizer.encode(word)[0] for word in ("similar", "assistant", "it"))

    (tmp_path / "recordings").symlink_to(root / "recordings")
    with Progress(Console(file=io.StringIO())) as progress:
        prepare_scenes(replace(CONFIG, skills=False), 0, tmp_path, progress)
    assert not list(tmp_path.glob("*_skills.jsonl"))
    for name in ("train", "test", "text", "train_dialogue"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (root / f"{name}.jsonl").read_bytes()
    plain = Tokenizer.load(tmp_path / "tokenizer.json")
    assert plain.encode("the piano is similar") == tokenizer.encode("the piano is similar")
    assert plain.first_added_id < tokenizer.first_added_id


def test_every_template_is_in_its_words(root: Path) -> None:
    """Of both papers; words of the templates and conversations stand behind all others, so that ids stay."""
    tokenizer = Tokenizer.load(root / "tokenizer.json")
    scene, talk = next(iter(Manifest(root / "train.jsonl"))), next(iter(Manifest(root / "train_dialogue.jsonl")))
    alone = replace(scene, questions=scene.questions[:1])
    for row in (alone, replace(alone, template="interleaved"), replace(alone, template="interleaved_random"), talk):
        for style in STYLES.values():
            (ids,) = render(row, tokenizer, 512, style=style, task_prefix=row is talk).segments
            assert "<unknown>" not in tokenizer.decode(ids, skip_special=False)
    first = min(tokenizer.encode(word)[0] for word in ("answer", "assistant", "it", "similar"))
    assert first > max(token for question in scene.questions for token in tokenizer.encode(question.prompt))


def test_preparation_follows_from_the_seed(root: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    for path in [*sorted(root.rglob("*.jsonl")), root / "tokenizer.json", root / "train" / "00003.flac"]:
        assert path.read_bytes() == (tmp_path / path.relative_to(root)).read_bytes()
