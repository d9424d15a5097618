"""A folder per label: all recordings, and a list of the rest."""

import json
import os
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
