"""Questions behind examples: which are shown, and what is refused."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_af.config import Config, RetrievalConfig
from megatron_af.data.rows import Manifest, Row
from megatron_af.data.templates import RowText, TooLong
from megatron_af.evaluate.few_shot import cut_short, few_shot_problems, few_shot_sets, few_shot_table
from megatron_af.inference import embedder as module
from megatron_af.retrieval.catalogue import read_catalogue
from megatron_af.retrieval.index import NeighbourIndex, index_folder, index_inputs
from tests.retrieval.toy import StubEmbedder, hear, retrieval_config, write_checkpoint


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """``train`` is indexed, ``test`` is what is asked about."""
    config = retrieval_config(tmp_path)
    write_checkpoint(config, "a")
    rows, catalogue = Manifest(tmp_path / "data/train.jsonl"), read_catalogue(config, "train")
    vectors = [hear((tmp_path / "data" / row.clips[0].path).read_bytes(), row.clips[0].start) for row in rows]
    folder, inputs = index_folder(config, "train"), index_inputs(config, "train")
    NeighbourIndex.make(catalogue, np.stack([vector.numpy() for vector in vectors]), folder, inputs)
    monkeypatch.setattr(module, "ClapEmbedder", StubEmbedder)
    monkeypatch.setattr(StubEmbedder, "heard", 0)
    return config


def asked_about(config: Config) -> list[Row]:
    return list(Manifest(Path(config.data.root) / "test.jsonl"))


def test_every_question_stands_behind_the_nearest_rows_that_answer_its_like(config: Config) -> None:
    rows = asked_about(config)
    plan = few_shot_sets(config, "train", {"test": rows}, [0, 1, 3])
    assert list(plan) == [0, 1, 3] and plan[0]["test"] == rows
    questions = [(row, question) for row in rows for question in row.questions]
    for few, most, (row, question) in zip(plan[1]["test"], plan[3]["test"], questions, strict=True):
        assert (few.id, most.id) == (row.id, row.id)
        assert few.questions[-1] == most.questions[-1] == question
        assert (len(few.questions), len(most.questions)) == (2, 4)
        assert few.clips == most.clips[2:] and few.clips[-1] == row.clips[0], "the nearest one next to the question"
        assert {example.skill for example in most.questions} == {question.skill}
        assert all(clip.path.startswith("train/") for clip in most.clips[:-1])
    assert StubEmbedder.heard == len(rows), "a clip is embedded once, however many questions it has"


def test_more_shots_than_examples_are_one_sentence(config: Config) -> None:
    recordings = len(set(NeighbourIndex.open(config, "train").catalogue.recording_P.tolist()))
    sets = {"test": asked_about(config)}
    assert few_shot_sets(config, "train", sets, [recordings])
    message = f"{recordings + 1} examples were asked for: train has {recordings} recordings .* at most {recordings}"
    with pytest.raises(ValueError, match=message):
        few_shot_sets(config, "train", sets, [1, recordings + 1])


def test_rows_that_cannot_stand_behind_examples_are_named(config: Config) -> None:
    row = asked_about(config)[0]
    for wrong in (dataclasses.replace(row, template="dialogue"), dataclasses.replace(row, clips=row.clips * 2)):
        with pytest.raises(ValueError, match=f"row {row.id}: expected a question of its own about one clip"):
            few_shot_sets(config, "train", {"test": [wrong]}, [1])


def test_flags_that_cannot_be_met_name_the_fix(config: Config) -> None:
    def problem(source: str, *shots: int, **changes: object) -> str:
        (told,) = few_shot_problems(dataclasses.replace(config, **changes), source, shots)  # type: ignore[arg-type]
        return told

    assert not list(few_shot_problems(config, "train", [0, 4])) and not list(few_shot_problems(config, "", [0]))
    assert "--shots -1" in problem("", -1, 0)
    assert "there is nothing to take from it" in problem("train", 0)
    assert "--shots 4 needs --from DATASET" in problem("", 4)
    assert "did you mean train?" in problem("trian", 4)
    assert "retrieval.stage is empty" in problem("train", 4, retrieval=RetrievalConfig())
    assert "test has no index in" in problem("test", 4) and problem("test", 4).endswith("build_retrieval.py index")
    write_checkpoint(config, "b")
    assert "the index of train was built before encoder changed" in problem("train", 4)
    nowhere = RetrievalConfig(encoder="models/nowhere")
    assert "models/nowhere: expected a Hugging Face folder" in problem("train", 4, retrieval=nowhere)
    shutil.rmtree(config.stage_folder("clap"))
    assert "has no checkpoint" in problem("train", 4)


def test_examples_without_room_are_counted() -> None:
    row = Row(id="r")

    def prompt(shortened: int) -> RowText:
        if shortened < 0:
            raise TooLong(row, 9, 8, 1, prompt=True)
        return RowText(row=row, segments=([],), shortened=shortened)

    assert cut_short(prompt, [0, 2, -1, 1]) == 2  # type: ignore[arg-type, list-item]


def test_the_table_has_a_column_for_each_number_of_shots() -> None:
    def score(audio: float, gap: float, cut: int) -> dict[str, object]:
        return {"test": {"overall": {"audio": audio, "gap": gap, "cut_short": cut}}}

    table = few_shot_table({0: score(10.0, 2.0, 0), 8: score(35.25, 20.0, 3)}, "train")
    assert [column.header for column in table.columns] == ["set", "0 shots", "8 shots"]
    assert [list(column.cells) for column in table.columns] == [["test"], ["10.0% (+2.0)"], ["35.2% (+20.0)"]]
    assert table.caption == "8 shots: 3 questions lost examples"
