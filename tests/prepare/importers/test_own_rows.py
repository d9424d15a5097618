"""Rows of our own from elsewhere."""

import json
import unicodedata
from pathlib import Path

from megatron_af.config import ImportConfig
from megatron_af.data.storage import DataRoot
from tests.data.toy import write_tone
from tests.prepare.importing import dump, problems, run


def test_our_own_rows_are_checked_and_completed(tmp_path: Path) -> None:
    write_tone(tmp_path / "sounds/x.wav", 2.0, 0)
    asked = {"prompt": "what?", "output": "rain"}
    lines = [
        {"id": "whole", "clips": [{"path": "x.wav"}], "questions": [asked], "meta": {"n": 1}},
        {"id": "piece", "clips": [{"path": "x.wav", "start": 0.5, "duration": 1.0}], "questions": [asked]},
        {"id": "words", "questions": [asked]},
        {"id": "gone", "clips": [{"path": "y.wav"}], "questions": [asked]},
        {"id": "odd", "clips": [{"path": "x.wav", "begin": 1}], "questions": [asked]},
        {"id": "out", "clips": [{"path": "../sounds/x.wav"}], "questions": [asked]},
    ]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n{broken\n")
    rows, report = run(tmp_path, ImportConfig(format="rows", path="theirs.jsonl", audio="sounds"))
    assert [(r.id, [(c.path, c.start, c.duration) for c in r.clips]) for r in rows] == [
        ("whole", [("sounds/x.wav", 0.0, 2.0)]), ("piece", [("sounds/x.wav", 0.5, 1.0)]), ("words", []),
    ]  # fmt: skip
    assert rows[0].meta == {"n": 1} and report.left_out == {"bad row": 3, "missing": 1}
    left_out = [json.loads(line) for line in (tmp_path / report.report).read_text().splitlines()]
    assert [entry["row"] for entry in left_out] == [4, 5, 6, 7] and "unknown key 'begin'" in left_out[1]["problem"]


def test_a_list_is_read_and_odd_rows_are_named(tmp_path: Path) -> None:
    write_tone(tmp_path / "w/a.wav", 2.0, 0)
    question = [{"prompt": "what?", "output": "rain"}]
    good = {"id": "x", "clips": [{"path": "a.wav"}], "questions": question}
    dump(tmp_path / "t.json", [
        good, good | {"clips": ["a.wav"]}, good | {"clips": [{"path": "A.WAV"}]}, good | {"clips": [{"path": "."}]},
        good | {"questions": {"prompt": "a"}}, good | {"clips": [{"path": "a.wav", "duration": "2.0"}]}, 3,
    ])  # fmt: skip
    rows, report = run(tmp_path, ImportConfig(format="rows", path="t.json", audio="w"))
    assert [row.clips[0].duration for row in rows] == [2.0, 2.0]
    said = " ".join(problems(tmp_path, report))
    for words in (
        "row 2: expected a clip",
        "'a.wav' is there",
        "it is a folder",
        "'questions' must be a list",
        "row 7",
    ):
        assert words in said


def test_names_are_found_in_either_unicode_form(tmp_path: Path) -> None:
    """A manifest from Linux, files from a Mac; the prepared rows name what is on the disk."""
    (tmp_path / "w").mkdir()
    write_tone(
        tmp_path / "w" / unicodedata.normalize("NFD", "Caf\u00e9") / unicodedata.normalize("NFD", "\u00fc.wav"), 1.0, 0
    )
    row = {"id": "n", "clips": [{"path": "Caf\u00e9/\u00fc.wav"}], "questions": [{"prompt": "what?", "output": "rain"}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    (found,), _ = run(tmp_path, ImportConfig(format="rows", path="t.jsonl", audio="w"))
    local = DataRoot(str(tmp_path)).local(found.clips[0].path)
    assert local is not None and local.is_file()
