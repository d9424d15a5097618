"""Parts of a data set share no recording, and each has its share of every class."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, DataConfig, DatasetConfig, ImportConfig, PartConfig
from megatron_af.data.rows import Clip, Manifest, Row
from megatron_af.data.storage import DataRoot
from megatron_af.prepare.outcome import import_rows
from megatron_af.prepare.parts import contents_of, places_of, write_part
from megatron_af.progress import silent
from megatron_af.runs.check import check
from tests.data.toy import write_tone


def run(folder: Path) -> Config:
    parts = {"train": (0.0, 0.6), "development": (0.6, 0.8), "test": (0.8, 1.0)}
    sets = {
        name: DatasetConfig(
            manifest=f"prepared/{name}", source=f"{name}.jsonl", part=PartConfig(of="all", begin=begin, end=end)
        )
        for name, (begin, end) in parts.items()
    }
    whole = DatasetConfig(manifest="all.jsonl", origin=ImportConfig(format="labels", path="f"))
    return Config(
        name="t", output=str(folder / "runs"), data=DataConfig(root=str(folder), datasets={**sets, "all": whole})
    )


def test_every_recording_lies_in_one_part_and_every_class_in_all(tmp_path: Path) -> None:
    for label, count in (("dog", 10), ("rain", 5)):
        for i in range(count):
            write_tone(tmp_path / f"f/{label}/{i}.wav", 0.2 + 0.01 * i, len(label) * 20 + i)
    shutil.copy(tmp_path / "f/dog/3.wav", tmp_path / "f/dog/again.wav")
    config = run(tmp_path)
    assert import_rows(config, list(config.data.datasets), silent()) == 0
    parts = {name: list(Manifest(tmp_path / f"{name}.jsonl")) for name in ("train", "development", "test")}
    assert sorted(row.id for rows in parts.values() for row in rows) == sorted(
        r.id for r in Manifest(tmp_path / "all.jsonl")
    )
    counted = {
        name: Counter(row.id.split("/")[0] for row in rows if row.id != "dog/again.wav") for name, rows in parts.items()
    }
    assert counted == {
        "train": {"dog": 6, "rain": 3},
        "development": {"dog": 2, "rain": 1},
        "test": {"dog": 2, "rain": 1},
    }
    (home,) = [name for name, rows in parts.items() if any(row.id == "dog/3.wav" for row in rows)]
    assert any(row.id == "dog/again.wav" for row in parts[home]), "the same sound under another name"
    before = {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in parts}
    assert write_part(replace(config, seed=7, name="other"), "test") == (len(parts["test"]), 16)
    assert (tmp_path / "test.jsonl").read_bytes() == before["test"], "another seed divides no otherwise"


def test_rows_that_share_a_recording_stand_together() -> None:
    clip = Clip(path="x", duration=1.0)
    rows = [Row(id=str(i), clips=(clip,), captions=("x",)) for i in range(9)]
    held = [["a"], ["b"], ["a", "c"], ["d"], ["c", "e"], ["e"], ["f"], ["f"], ["g"]]
    places = places_of(rows, held)
    assert places[0] == places[2] == places[4] == places[5] and places[6] == places[7]
    assert sorted(set(places)) == [0.1, 0.3, 0.5, 0.7, 0.9]


def test_what_cannot_be_read_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    rows = [Row(id=name, clips=(Clip(path=name, duration=1.0),), captions=("x",)) for name in ("a", "b", "c", "d")]
    a, b, c, d = contents_of(str(tmp_path), tmp_path / "kept", rows)
    assert a == b and len({tuple(held) for held in (a, c, d)}) == 3, "two that are not there are not the same"
    root = "memory://parts"
    for name in ("a", "b"):
        with DataRoot(root).writing(name) as file:
            file.write(b"x")
    a, b, *_ = contents_of(root, tmp_path / "kept", rows)
    assert a != b, "of an object store sizes alone are known"


def test_parts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    config = run(tmp_path)
    with pytest.raises(ValueError, match=r"data.datasets.test.part.of = all: there are no rows of it in .*; import"):
        write_part(config, "test")
    sets = config.data.datasets
    for bad, said in (
        (PartConfig(of="al"), "part.of = al: not in data.datasets; did you mean all?"),
        (PartConfig(of="train"), "part.of = train: is itself a part"),
        (PartConfig(of="all", begin=0.5, end=0.5), "nothing lies between begin = 0.5 and end = 0.5"),
    ):
        wrong = replace(config.data, datasets={**sets, "test": replace(sets["test"], part=bad)})
        assert any(said in problem for problem in check(replace(config, data=wrong), 1)), said
    wrong = replace(config.data, datasets={**sets, "test": replace(sets["test"], origin=sets["all"].origin)})
    assert any("has an origin and is a part of all" in problem for problem in check(replace(config, data=wrong), 1))
