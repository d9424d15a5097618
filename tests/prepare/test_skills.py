"""Skills made of labels and by a language model, balanced, counted and measured for what their text gives away."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import ConfigError
from megatron_af.data.rows import Manifest, to_json
from megatron_af.prepare.skills import SkillsConfig, make_skills
from tests.prepare.endpoint import Answer, Server
from tests.prepare.test_skill_questions import scene
from tests.prepare.test_strong_labels import labelled


def strong(folder: Path, count: int, bad: int = 0) -> SkillsConfig:
    rows = []
    for i in range(count):
        sounds = scene(random.Random(i))
        seconds = max(s.end for s in sounds) + (1 if i >= bad else -1)
        rows.append(labelled(*((s.label, s.start, s.end) for s in sounds), seconds=max(seconds, 0.1), number=i))
    (folder / "strong.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    return SkillsConfig(source=str(folder / "strong.jsonl"), output=str(folder / "skills.jsonl"))


def test_labels_alone_give_balanced_questions_that_the_text_does_not_answer(tmp_path: Path) -> None:
    config = strong(tmp_path, 400, bad=3)
    report = make_skills(config)
    rows = list(Manifest(Path(config.output)))
    assert report.refused == {"… is labelled until … s, and the recording ends at … s": 3} and report.exit_code == 0
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
    with pytest.raises(ConfigError, match="nothing to make"):
        make_skills(SkillsConfig(**{**vars(config), "truth": False}))
