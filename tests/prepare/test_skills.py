"""Skills made of labels and by a language model, balanced, counted and measured for what their text gives away."""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import ConfigError
from megatron_af.data.rows import Manifest, to_json
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate.benchmarks import read_questions
from megatron_af.prepare.skills import SkillsConfig, make_skills
from megatron_af.runs.benchmarks import load_benchmark
from tests.data.toy import write_tone
from tests.prepare.endpoint import Answer, Server
from tests.prepare.labelled import labelled
from tests.prepare.labelled_scene import scene


def strong(folder: Path, count: int, bad: int = 0) -> SkillsConfig:
    rows = []
    for i in range(count):
        sounds = scene(random.Random(i))
        seconds = max(s.end for s in sounds) + (1 if i >= bad else -1)
        rows.append(labelled(*((s.label, s.start, s.end) for s in sounds), seconds=max(seconds, 0.1), number=i))
    (folder / "strong.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    return SkillsConfig(source=str(folder / "strong.jsonl"), output=str(folder / "skills.jsonl"))


def from_a_model(config: SkillsConfig, folder: Path, server: Server, *kinds: str) -> SkillsConfig:
    """The same, and these kinds of questions are asked of a server."""
    return replace(config, root=str(folder), endpoint=server.endpoint, model="toy", written=kinds,
                   requests_per_minute=60_000.0, attempts=1)  # fmt: skip


def test_labels_alone_give_balanced_questions_that_the_text_does_not_answer(tmp_path: Path) -> None:
    config = strong(tmp_path, 430, bad=3)
    report = make_skills(config)
    rows = list(Manifest(Path(config.output)))
    ((told, count),) = report.refused.items()
    assert told.startswith("… ends at … behind its clip of … s; expected seconds") and count == 3
    assert report.exit_code == 0
    assert sum(report.skills.values()) == sum(len(row.questions) for row in rows) > 600
    four = [q for row in rows for q in row.questions if q.skill == "temporal: grounding"]
    places = Counter(q.options.index(q.output) for q in four if len(q.options) == 4)
    assert len(places) == 4 and max(places.values()) - min(places.values()) <= 1
    leak = report.leak["all"]
    assert leak.right - leak.chance < 12, report.lines
    assert any("points above chance" in line for line in report.lines)
    first = Path(config.output).read_text()
    make_skills(config)
    assert Path(config.output).read_text() == first, "the same labels give the same questions"


def test_a_tenth_of_the_recordings_becomes_a_benchmark(tmp_path: Path) -> None:
    config = strong(tmp_path, 400)
    for name in ("3.wav", "5.wav"):
        write_tone(tmp_path / name, 0.1, 7)  # the same, and no other is there
    before = list(Manifest(Path(config.source)))
    longer = max(before[place].clips[0].duration for place in (3, 5))
    for place in (3, 5):
        before[place] = replace(before[place], clips=(replace(before[place].clips[0], duration=longer),))
    Path(config.source).write_text("".join(to_json(row) + "\n" for row in before))
    config = replace(config, root=str(tmp_path), held_out=str(tmp_path / "longaudio/held_out.jsonl"), long_seconds=8.0)
    report = make_skills(config)
    learnt, asked = (list(Manifest(Path(file))) for file in (config.output, config.held_out))
    places = [{row.clips[0].path for row in rows} for rows in (learnt, asked)]
    assert not places[0] & places[1] and "5.wav" not in places[0] | places[1]
    assert report.copies == 1 and Path(f"{config.output}.copies").read_text() == '{"id": "r5", "copy_of": "r3"}\n'
    assert report.held_out == (sum(len(row.questions) for row in asked), len(places[1]))
    assert 20 <= len(places[1]) <= 60 and report.rows == len(places[0])
    assert any("held out" in line for line in report.lines) and any("another name" in line for line in report.lines)

    benchmark = load_benchmark("longaudio")
    for path in places[1]:
        write_tone(tmp_path / path, 0.1, 1)
    found = read_questions(benchmark, DataRoot(str(tmp_path)))
    assert len(found.questions) == report.held_out[0] and not found.left_out
    first = found.questions[0]
    said = first.worded(benchmark.wordings[0]).questions[-1].prompt
    assert said.startswith(f"{first.question.prompt}\n(A) {first.question.options[0]}")
    whole = make_skills(replace(config, held_out=""))
    assert sum(whole.skills.values()) == sum(report.skills.values()) + report.held_out[0]


def test_recordings_of_one_shard_are_counted_and_measured_apart(tmp_path: Path) -> None:
    config = strong(tmp_path, 60)
    rows = [
        replace(row, clips=(replace(row.clips[0], path="a.tar", offset=512 * (n + 1), length=9),))
        for n, row in enumerate(Manifest(Path(config.source)))
    ]
    Path(config.source).write_text("".join(to_json(row) + "\n" for row in rows))
    report = make_skills(config)
    assert report.rows == len(list(Manifest(Path(config.output)))) > 50 and "all" in report.leak


def test_rows_that_cannot_be_read_are_refused_once_for_each_way_of_asking(
    tmp_path: Path, start: Callable[[Answer], Server]
) -> None:
    config = strong(tmp_path, 3)
    for name in ("0.wav", "1.wav"):
        write_tone(tmp_path / name, 0.1, 7)
    write_tone(tmp_path / "2.wav", 0.1, 8)
    lines = Path(config.source).read_text().splitlines()
    again = lines[0].replace('"r0"', '"r1"').replace("0.wav", "1.wav")  # the same recording under another name
    Path(config.source).write_text("\n".join([lines[0], "{", again, "[", lines[2]]))
    server = start(lambda items, number: (200, json.dumps({"questions": []}), {}))
    report = make_skills(replace(from_a_model(config, tmp_path, server, "captioning", "plot"), truth=False))
    unread = {why: count for why, count in report.refused.items() if "leaves this row out" not in why}
    assert report.copies == 1 and report.asked == 2 * (2 + 2) and sum(unread.values()) == 2 * 2, report.refused


def test_a_model_is_asked_once_about_a_recording_with_two_names(
    tmp_path: Path, start: Callable[[Answer], Server]
) -> None:
    config = strong(tmp_path, 2)
    for name in ("0.wav", "1.wav"):
        write_tone(tmp_path / name, 0.1, 7)
    first, _ = Manifest(Path(config.source))
    again = replace(first, id="again", clips=(replace(first.clips[0], path="1.wav"),))
    Path(config.source).write_text(to_json(first) + "\n" + to_json(again) + "\n")
    server = start(lambda items, number: (200, json.dumps({"questions": []}), {}))
    asked = from_a_model(config, tmp_path, server, "captioning")
    assert make_skills(asked).refused == {"the reply leaves this row out": 1}


def test_a_model_writes_and_is_checked(tmp_path: Path, start: Callable[[Answer], Server]) -> None:
    def answer(items: list[dict[str, Any]], number: int) -> tuple[int, str, dict[str, str]]:
        if "options" in items[0]:  # the check
            chosen = [{"id": i["id"], "answer": i["options"][i["sounds"][0]["begins"] >= 2]} for i in items]
            return 200, json.dumps({"answers": chosen}), {}
        entries = []
        for item in items:
            options = [f"{name} {item['sounds'][0]['begins']}" for name in ("alpha", "beta", "gamma", "delta")]
            said = {"question": "where is it?", "answer": options[0], "options": options}
            entries.append({"id": item["id"], "evidence": [item["sounds"][0]["sound"]], **said})
        return 200, json.dumps({"questions": entries}), {}

    config = strong(tmp_path, 12)
    server = start(answer)
    asked = {**vars(config), "endpoint": server.endpoint, "model": "toy", "written": ("general_reasoning",),
             "truth": False, "requests_per_minute": 60_000.0, "timeout_seconds": 5.0}  # fmt: skip
    report = make_skills(SkillsConfig(**asked))
    late = report.refused["the check finds another option"]
    assert late > 0 and report.skills == {"general reasoning": 12 - late}
    rows = list(Manifest(Path(config.output)))
    assert all(row.id.endswith("-general_reasoning") and not row.spans for row in rows)
    before = len(server.asked)
    make_skills(SkillsConfig(**asked))
    assert len(server.asked) == before, "kept"
    unchecked = make_skills(SkillsConfig(**asked | {"self_check": False}))
    assert unchecked.skills == {"general reasoning": 12} and unchecked.exit_code == 0


def test_what_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    config = strong(tmp_path, 1)
    with pytest.raises(ConfigError) as caught:
        make_skills(SkillsConfig(**{**vars(config), "written": ("general_resoning",)}))
    assert len(caught.value.problems) == 2
    for words in ("did you mean general_reasoning?", "written needs endpoint and model"):
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="held_out is output: give what is held out a file of its own"):
        make_skills(replace(config, held_out=config.output))
    with pytest.raises(ConfigError, match="nothing to make"):
        make_skills(SkillsConfig(**{**vars(config), "truth": False}))
