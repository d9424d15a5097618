"""A folder per label: all recordings, and a list of the rest."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
import soundfile

from megatron_af.config import ImportConfig
from megatron_af.foreign import ForeignError
from tests.data.toy import write_tone
from tests.prepare.importing import problems, run


def test_everything_that_is_a_recording_counts_whatever_its_suffix(tmp_path: Path) -> None:
    for label in ("rain", "dog"):
        write_tone(tmp_path / f"f/{label}/0.wav", 1.0, 0)
        wave, rate = soundfile.read(tmp_path / f"f/{label}/0.wav")
        for name, kind in (("1.au", "AU"), ("2.xyz", "FLAC"), ("3", "WAV"), ("4.W64", "W64")):
            soundfile.write(tmp_path / f"f/{label}/{name}", wave, rate, format=kind)
    (tmp_path / "f/dog/notes.txt").write_text("recorded in May")
    (tmp_path / "f/dog/model.npy").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "f/README").write_text("labels")
    for litter in ("__MACOSX/rain/._0.wav", "dog/._1.wav", "dog/.DS_Store", "__MACOSX/a.wav"):
        (tmp_path / "f" / litter).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / litter).write_bytes(b"\x00\x05\x16\x07" + bytes(99))
    rows, report = run(tmp_path, ImportConfig(format="labels", path="f"))
    assert len(rows) == 10 and report.passed_over == 3 and not report.left_out
    assert rows[0].questions[0].options == ("dog", "rain")
    listed = [json.loads(line) for line in (tmp_path / report.report).read_text().splitlines()]
    assert {entry["file"] for entry in listed} == {"README", "dog/notes.txt", "dog/model.npy"}
    assert all(entry["reason"] == "passed over" and entry["problem"] for entry in listed)


def test_names_that_are_not_utf8_and_links_are_named(tmp_path: Path) -> None:
    write_tone(tmp_path / "f/dog/a.wav", 1.0, 0)
    write_tone(tmp_path / "real/0.wav", 1.0, 0)
    (tmp_path / "f/rain").symlink_to(tmp_path / "real")
    (tmp_path / "f/dog/more").symlink_to(tmp_path / "real")
    (tmp_path / "f/dog/a.wav").rename(os.fsdecode(bytes(tmp_path) + b"/f/dog/caf\xe9.wav"))
    rows, report = run(tmp_path, ImportConfig(format="labels", path="f"))
    assert [row.id for row in rows] == ["rain/0.wav"]
    assert "not UTF-8" in problems(tmp_path, report)[0] and "not followed" in problems(tmp_path, report)[1]


def test_folders_that_are_splits_are_no_labels(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_tone(tmp_path / f"f/{split}/dog/a.wav", 1.0, 0)
    with pytest.raises(ForeignError, match=r"are splits .test, train., not labels.*origin.path=f/test"):
        run(tmp_path, ImportConfig(format="labels", path="f"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/dog/1.wav", "test/dog/2.wav", "extra/dog/3.wav"], r"splits \(test, train\), not labels"),
        (["train_set/dog/1.wav", "Test data/dog/2.wav"], r"splits \(Test data, train_set\)"),
        (["data/dog/1.wav", "data/cat/2.wav"], r"only folder data, .* \(cat, dog\).*origin.path=f/data"),
        (["train/dog/1.wav", "train/cat/2.wav"], "origin.path=f/train"),
    ],
)
def test_folders_around_labels_are_none(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        write_tone(tmp_path / "f" / name, 0.5, 0)
    with pytest.raises(ForeignError, match=words):
        run(tmp_path, ImportConfig(format="labels", path="f"))


def test_a_train_may_be_heard(tmp_path: Path) -> None:
    for name in ("train/1.wav", "dog/2.wav", "train horn/3.wav"):
        write_tone(tmp_path / "f" / name, 0.5, 0)
    rows, _ = run(tmp_path, ImportConfig(format="labels", path="f"))
    assert {row.questions[0].output for row in rows} == {"train", "dog", "train horn"}


def test_what_is_no_file_is_named_and_nothing_waits_for_a_pipe(tmp_path: Path) -> None:
    write_tone(tmp_path / "f/dog/a.wav", 1.0, 0)
    for name in ("pipe.wav", "pipe.xyz"):
        os.mkfifo(tmp_path / "f/dog" / name)
    (tmp_path / "f/dog/zero.wav").symlink_to("/dev/zero")
    (tmp_path / "f/dog/broken.wav").symlink_to("nowhere.wav")
    (tmp_path / "f/dog/folder.wav").mkdir()
    rows, report = run(tmp_path, ImportConfig(format="labels", path="f"))
    said = problems(tmp_path, report)
    assert [row.id for row in rows] == ["dog/a.wav"]
    assert sorted(line.partition(" ")[2] for line in said if "pipe.xyz" not in line and line.startswith("f/")) == [
        "cannot be opened: it is a device, no file",
        "cannot be opened: it is a pipe, no file",
        "does not exist: it is a link that leads nowhere",
    ]
    assert report.passed_over == 1 and len(said) == 5 and "it is a pipe" in said[3]


def test_what_programs_leave_is_no_label_and_what_is_hidden_is_named(tmp_path: Path) -> None:
    for label in ("dog", ".git", ".cache", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", ".mine"):
        write_tone(tmp_path / "f" / label / "a.wav", 1.0, 0)
    (tmp_path / "f/again").symlink_to(tmp_path / "f")
    rows, report = run(tmp_path, ImportConfig(format="labels", path="f"))
    assert [row.id for row in rows] == ["dog/a.wav"] and rows[0].questions[0].options == ("dog",)
    listed = [json.loads(line) for line in (tmp_path / report.report).read_text().splitlines()]
    assert {entry["file"]: entry["problem"] for entry in listed} == {
        ".mine": "is hidden: its name begins with a dot",
        "again": "is a link to a folder around it",
    }


def test_a_label_in_both_unicode_forms_is_one_class(tmp_path: Path) -> None:
    for label in ("dog", unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")):
        write_tone(tmp_path / "f" / label / "a.wav", 0.5, 0)
    rows, _ = run(tmp_path, ImportConfig(format="labels", path="f"))
    assert [row.meta["class"] for row in rows].count(unicodedata.normalize("NFC", "café")) == 2
    assert {row.questions[0].options for row in rows} == {(unicodedata.normalize("NFC", "café"), "dog")}


def test_one_label_alone_is_told(tmp_path: Path) -> None:
    for take in range(2):
        write_tone(tmp_path / "f/dog" / f"{take}.wav", 0.3, take)
    rows, report = run(tmp_path, ImportConfig(format="labels", path="f"))
    ((kind, (count, told)),) = report.notes.items()
    assert len(rows) == 2 and kind == "a question with one option teaches nothing" and count == 1
    assert told == f"all 2 are 'dog': name the folder around {tmp_path}/f, or the one that holds a folder for each"
    write_tone(tmp_path / "f/cat/0.wav", 0.3, 2)
    assert run(tmp_path, ImportConfig(format="labels", path="f"))[1].notes == {}


def test_what_is_not_wholly_fetched_is_passed_over(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        write_tone(tmp_path / "f" / label / "a.wav", 0.3, len(label))
    for suffix in (".part", ".crdownload", ".tmp"):
        write_tone(tmp_path / "b.wav", 0.3, 1)
        (tmp_path / "b.wav").rename(tmp_path / f"f/dog/b.wav{suffix}")
    rows, report = run(tmp_path, ImportConfig(format="labels", path="f"))
    assert [row.id for row in rows] == ["cat/a.wav", "dog/a.wav"] and report.passed_over == 3
    assert set(problems(tmp_path, report)) == {"is not wholly fetched, by its suffix: fetch it again"}


def test_labels_that_look_alike_are_told(tmp_path: Path) -> None:
    alike = [("hip-hop", "hip hop", "hiphop"), ("1", "1.0", "01"), ("don't", "don’t"), ("ｆｉｒｅ", "fire")]
    for label in (*(label for same in alike for label in same), "c", "c#", "1-2", "12", "1.5 m", "15 m", "-3", "3"):
        write_tone(tmp_path / "f" / label / "0.wav", 0.3, 0)
    rows, report = run(tmp_path, ImportConfig(format="labels", path="f"))
    ((kind, (count, _)),) = report.notes.items()
    assert kind.startswith("labels that look alike") and count == len(alike) and len(rows[0].questions[0].options) == 18
    assert set(problems(tmp_path, report)) == {", ".join(map(repr, sorted(same))) for same in alike}
