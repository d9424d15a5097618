"""What codes of labels mean is read from the list that they were published with."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import DictionaryConfig, ImportConfig
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.foreign import ForeignError
from megatron_af.prepare.importers.dictionary import dictionary
from tests.data.toy import write_tone
from tests.prepare.importing import problems, run

LISTED = DictionaryConfig(path="codes.csv", code="mid", means="name")
ORIGIN = ImportConfig(format="csv", path="t.csv", columns={"audio": "file", "label": "code"}, dictionary=LISTED)


def test_labels_are_said_as_the_list_says_them_and_unknown_ones_are_bad_rows(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    (tmp_path / "t.csv").write_text("file,code\na.wav,/m/1\na.wav,/m/3\na.wav,/m/2\n")
    (tmp_path / "codes.csv").write_text('index,mid,name\n0,/m/1,"Speech, of a child"\n1,/m/2,Rain\n')
    rows, report = run(tmp_path, ORIGIN)
    assert [row.questions[0].output for row in rows] == ["speech, of a child", "rain"]
    assert rows[0].questions[0].options == ("rain", "speech, of a child")
    assert problems(tmp_path, report) == ["line 3: label '/m/3' is not in codes.csv"]
    rows, _ = run(tmp_path, replace(ORIGIN, words={"/m/3": "bell"}))
    assert [row.questions[0].output for row in rows] == ["speech, of a child", "bell", "rain"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("mid,title\n/m/1,Rain\n", "origin.dictionary.means = 'name', and the list has ['mid', 'title']"),
        ("", "codes.csv is empty"),
        ("\n", "origin.dictionary.code = 'mid', and the list has []"),
        ("mid,name\n/m/1,Rain\n/m/2\n", "line 3 has no name"),
        ("mid,name\n,Rain\n", "line 2 has no mid"),
        ("mid,name\n/m/1,Rain\n/m/1,Hail\n", "line 3: /m/1 means 'Rain' already"),
    ],
)
def test_a_list_that_says_no_such_thing_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "codes.csv").write_text(content)
    with pytest.raises(ForeignError) as caught:
        dictionary(DataRoot(str(tmp_path)), ORIGIN)
    assert said in str(caught.value)


def test_no_list_is_no_words_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert dictionary(DataRoot(str(tmp_path)), replace(ORIGIN, dictionary=None)) == {}
    with pytest.raises((StorageError, FileNotFoundError), match=r"codes\.csv"):
        dictionary(DataRoot(str(tmp_path)), ORIGIN)
