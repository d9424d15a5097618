"""The import itself: what is refused whole, and what never leaves the root."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, DataConfig, DatasetConfig, ImportConfig
from megatron_af.prepare.importers import import_dataset
from megatron_af.progress import silent
from tests.data.toy import write_tone
from tests.prepare.importing import dump, problems, run, table


def test_names_never_leave_the_data_root(tmp_path: Path) -> None:
    write_tone(tmp_path / "out.wav", 1.0, 0)
    root = tmp_path / "data"
    dump(root / "x.json", {"split_path": "../", "data": {"0": {"name": "out.wav", "prompt": "p", "output": "o"}}})
    rows, report = run(root, ImportConfig(format="audio_flamingo", path="x.json"))
    assert rows == [] and report.left_out == {"bad row": 1} and "data.root" in (root / report.report).read_text()
    dump(
        root / "y.json", {"split_path": str(tmp_path), "data": {"0": {"name": "out.wav", "prompt": "p", "output": "o"}}}
    )
    assert run(root, ImportConfig(format="audio_flamingo", path="y.json"))[0] == []


def test_wrong_files_and_configurations_are_refused(tmp_path: Path) -> None:
    dump(tmp_path / "x.json", {"rows": []})
    with pytest.raises(ValueError, match="expected keys 'data'"):
        run(tmp_path, ImportConfig(format="audio_flamingo", path="x.json"))
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        run(tmp_path, ImportConfig(format="conversations", path="y.json"))
    with pytest.raises(ValueError, match="no such tar files"):
        run(tmp_path, ImportConfig(format="webdataset", path="*.tar"))
    config = Config(name="i", data=DataConfig(root=str(tmp_path), datasets={"a": DatasetConfig(manifest="a")}))
    with pytest.raises(ValueError, match="importing needs origin"):
        import_dataset(config, "a", silent())
    assert replace(config, name="j").name == "j"


@pytest.mark.parametrize("layout", ["csv", "json", "rows"])
def test_an_answer_that_is_none_of_the_options_is_named(tmp_path: Path, layout: str) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    answers, options = ("wind", "rain", "B"), ["wind", "hum"]
    table(tmp_path / "t.csv", [{"f": "a.wav", "q": "what?", "a": a, "o1": "wind", "o2": "hum"} for a in answers])
    dump(tmp_path / "t.json", [{"f": "a.wav", "q": "what?", "a": a, "o": options} for a in answers])
    asked = [[{"prompt": "what?", "output": a, "options": options}] for a in answers]
    dump(tmp_path / "r.json", [{"id": n, "clips": [{"path": "a.wav"}], "questions": q} for n, q in enumerate(asked)])
    columns = {"audio": "f", "prompt": "q", "output": "a"}
    origin = {
        "csv": ImportConfig(format="csv", path="t.csv", columns=columns | {"options": "o1,o2"}),
        "json": ImportConfig(format="json", path="t.json", columns=columns | {"options": "o"}),
        "rows": ImportConfig(format="rows", path="r.json"),
    }[layout]
    rows, report = run(tmp_path, origin)
    assert [row.questions[0].output for row in rows] == ["wind", "B"]
    assert problems(tmp_path, report) == ['1: its answer "rain" is none of its options ["wind", "hum"]']


@pytest.mark.parametrize("layout", ["csv", "conversations", "rows"])
def test_every_row_has_an_id_of_its_own(tmp_path: Path, layout: str) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    ids = ["x", "x", "", "x~2", "x", " "]
    asked = [{"prompt": "what?", "output": "rain"}]
    dump(tmp_path / "r.json", [{"id": i, "clips": [{"path": "a.wav"}], "questions": asked} for i in ids])
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "rain"}]
    dump(tmp_path / "c.json", [{"id": i, "sound": "a.wav", "conversations": turns} for i in ids])
    table(tmp_path / "t.csv", [{"i": i, "f": "a.wav", "c": "rain"} for i in ids])
    origin = {
        "csv": ImportConfig(format="csv", path="t.csv", columns={"audio": "f", "id": "i", "caption": "c"}),
        "conversations": ImportConfig(format="conversations", path="c.json"),
        "rows": ImportConfig(format="rows", path="r.json"),
    }[layout]
    rows, report = run(tmp_path, origin)
    made = [row.id for row in rows]
    assert len(set(made)) == len(made) == 6 and all(name.strip() for name in made)
    assert made[:2] == ["x", "x~2"] and made[3:5] == ["x~2~2", "x~3"] and report.renamed >= 4
    assert [row.clips[0].path for row in rows] == ["a.wav"] * 6
