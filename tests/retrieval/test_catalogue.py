"""What may be an example: one clip and a question, never a recording that is held out, copies taken as one."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, ConfigError, StageConfig
from megatron_af.data.rows import Clip, Manifest, Question, Row
from megatron_af.prepare.sharding import prepare
from megatron_af.progress import silent
from megatron_af.retrieval.catalogue import read_catalogue
from tests.data.toy import write_manifest
from tests.retrieval.toy import retrieval_config, write_rows


def train_rows(config: Config) -> list[Row]:
    return list(Manifest(Path(config.data.root) / "train.jsonl"))


def write(config: Config, name: str, rows: list[Row]) -> None:
    write_manifest(Path(config.data.root), name, rows)


def test_pieces_and_recordings(tmp_path: Path) -> None:
    config = retrieval_config(tmp_path, train=8)
    rows = train_rows(config)
    again = replace(rows[0], id="other words", questions=(Question(prompt="and?", output="yes"),))
    shutil.copy(tmp_path / "data/train/1.wav", tmp_path / "data/train/copy.wav")
    copy = replace(rows[1], id="copy", clips=(Clip(path="train/copy.wav", duration=1.0),))
    write(config, "train", [*rows, again, copy])
    catalogue = read_catalogue(config, "train")
    assert catalogue.row_N.tolist() == list(range(10))
    assert catalogue.piece_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1], (
        "equal bytes are one piece, whatever their name"
    )
    recordings = catalogue.recording_P.tolist()
    assert recordings[2] == recordings[3] and recordings[6] == recordings[7], "two pieces of one recording"
    assert len(set(recordings)) == 6
    assert len(set(catalogue.key_P)) == 8 and len(set(catalogue.audio_P)) == 6


def test_rows_that_are_no_example_are_counted(tmp_path: Path) -> None:
    config = retrieval_config(tmp_path, train=4)
    rows = train_rows(config)
    clip = rows[0].clips[0]
    odd = [
        replace(rows[0], id="text", clips=()),
        replace(rows[0], id="two", clips=(clip, clip)),
        replace(rows[0], id="talk", template="dialogue"),
        replace(rows[0], id="caption", questions=(), captions=("rain",)),
        replace(rows[0], id="gone", clips=(Clip(path="train/gone.wav", duration=1.0),)),
        replace(rows[0], id="short", clips=(Clip(path="train/1.wav", duration=9.0),)),
    ]
    write(config, "train", [odd[0], *rows, *odd[1:]])
    catalogue = read_catalogue(config, "train")
    assert catalogue.row_N.tolist() == [1, 2, 3, 4]
    assert catalogue.left_out == {"not about one clip": 3, "no question": 1, "cannot be read": 2}
    write(config, "train", odd)
    with pytest.raises(ConfigError, match=r"no row to show as an example \(not about one clip: 3, no question: 1"):
        read_catalogue(config, "train")


def test_nothing_held_out_is_indexed(tmp_path: Path) -> None:
    config = retrieval_config(tmp_path, train=12)
    root, rows = Path(config.data.root), train_rows(config)
    shutil.copy(root / "train/4.wav", root / "test/4.wav")
    same_file = replace(rows[2], id="t2")  # train rows 2 and 3 are cut from it
    a_copy = replace(rows[4], id="t4", clips=(Clip(path="test/4.wav", duration=0.5, start=1.0),))
    shots = Row(
        id="shots", clips=(rows[9].clips[0], rows[5].clips[0]), questions=rows[0].questions, template="interleaved"
    )
    write(config, "test", [*write_rows(root, "test", 2), same_file, a_copy, shots])
    catalogue = read_catalogue(config, "train")
    assert catalogue.row_N.tolist() == [0, 1, 6, 7, 8, 9, 10, 11], "9 is but an example in the held-out row"
    assert catalogue.left_out == {"recording is held out": 4}
    assert len(catalogue.key_P) == len(catalogue.recording_P) == 8 and catalogue.piece_N.tolist() == list(range(8))
    with pytest.raises(ConfigError, match=r"test: curriculum\.clap is evaluated on it; name a training split"):
        read_catalogue(config, "test")
    with pytest.raises(ConfigError, match=r"other: not in data\.datasets"):
        read_catalogue(config, "other")


def test_prepared_pieces_know_the_recording_they_were_cut_from(tmp_path: Path) -> None:
    config = retrieval_config(tmp_path, train=12)
    held_out = replace(train_rows(config)[6], id="held out")
    write(config, "test", [held_out])
    datasets = {
        name: replace(config.data.datasets[name], source=f"{name}.jsonl", manifest=f"prepared/{name}")
        for name in ("train", "test")
    }
    data = replace(config.data, datasets=datasets, prepare=replace(config.data.prepare, workers=1))
    prepared = replace(config, data=data, curriculum={"clap": StageConfig(evaluation=("test",))})
    for name in datasets:
        prepare(prepared, name, silent())
    catalogue = read_catalogue(prepared, "train")
    assert catalogue.row_N.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11], "6 and 7 are pieces of what is held out"
    recordings = catalogue.recording_P.tolist()
    assert recordings[2] == recordings[3] and len(set(recordings)) == 8
