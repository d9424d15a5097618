"""What folders of other people hold is understood, and imported as it was understood."""

from pathlib import Path

import pytest

from megatron_af.foreign import ForeignError
from megatron_af.start.layouts import NotUnderstood, understand
from tests.start.looking import classes, look, tones


def test_a_folder_for_each_label(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "dog/1.wav", "dog/2.wav", "rain/1.wav", "__MACOSX/dog/._1.wav")
    (tmp_path / "mine/README.txt").write_text("recorded in May")
    found, rows = look(tmp_path)
    assert classes(rows["all"]) == ["dog", "dog", "rain"]
    assert found.told == ["a folder for each label: dog, rain"] and found.origins["all"].format == "labels"


def test_folders_of_labels_below_another_one(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "audio/dog/1.wav", "audio/dog/2.wav", "audio/rain/1.wav")
    found, rows = look(tmp_path)
    assert classes(rows["all"]) == ["dog", "dog", "rain"] and "below audio" in found.told[0]


def test_folders_that_are_divided_already(tmp_path: Path) -> None:
    tones(tmp_path / "mine", *(f"{split}/{label}/1.wav" for split in ("train", "val", "test") for label in ("a", "b")))
    found, rows = look(tmp_path)
    assert list(found.origins) == ["train", "development", "test"]
    assert {name: classes(part) for name, part in rows.items()} == {split: ["a", "b"] for split in found.origins}


def test_what_settings_are_chosen_by_is_measured_where_nothing_else_is(tmp_path: Path) -> None:
    tones(tmp_path / "mine", *(f"{split}/{label}/1.wav" for split in ("train", "val") for label in ("a", "b")))
    found, rows = look(tmp_path)
    assert {name: classes(part) for name, part in rows.items()} == {"train": ["a", "b"], "test": ["a", "b"]}
    assert "val is measured at the end, for none is called test" in found.told


def test_recordings_that_nothing_is_said_of_are_told_of(tmp_path: Path) -> None:
    tones(tmp_path / "mine", *(f"{number}.wav" for number in range(3)))
    for number in range(2):
        (tmp_path / f"mine/{number}.txt").write_text(f"sound {number}")
    found, _ = look(tmp_path)
    assert "not read: 1 recordings without a text, such as 2.wav" in found.told
    for number in range(2):
        (tmp_path / f"mine/{number}.txt").unlink()
    (tmp_path / "mine/lines.txt").write_text("0.wav rain falls\n1.wav a dog\n")
    found, _ = look(tmp_path)
    assert "not read: 1 recordings without a line, such as 2.wav" in found.told


TABLES = {
    "captions": ("file_name,caption_1,caption_2\na b.wav,rain falls,it rains\nc.wav,a dog,barking\n", "captions"),
    "no suffix": ("id;description\na b;rain falls\nc;a dog barks\n", "captions"),
    "tabs": ('path\tsentence\tage\na b.wav\t"rain" falls\t3\nc.wav\ta dog\t4\n', "captions"),
    "labels": ("filename,fold,category\na b.wav,1,rain\nc.wav,2,dog_bark\na b.wav,1,rain\n", "class"),
    "questions": ("wav,question,answer\na b.wav,what is it?,rain\nc.wav,is it loud?,yes\n", "answers"),
    "one unknown column of few texts": ("x,y\n" + "a b.wav,rain\nc.wav,dog\n" * 5, "class"),
    "one unknown column of many texts": ("x,y\na b.wav,rain falls\nc.wav,a dog barks\n", "captions"),
}


@pytest.mark.parametrize(("content", "kind"), TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("place", ["", "clips/"])
def test_tables(tmp_path: Path, content: str, kind: str, place: str) -> None:
    tones(tmp_path / "mine", f"{place}a b.wav", f"{place}c.wav")
    (tmp_path / f"mine/t.{'tsv' if chr(9) in content else 'csv'}").write_text(content)
    found, rows = look(tmp_path)
    first = rows["all"][0]
    if kind == "captions":
        assert first.captions[0].replace('"', "") == "rain falls" and not first.meta
    elif kind == "class":
        assert first.meta["class"] == "rain" and first.questions[0].output == "rain"
    else:
        assert (first.questions[0].prompt, first.questions[0].output) == ("what is it?", "rain")
    assert "audio in" in found.told[0] and ("recordings below clips" in found.told[0]) is bool(place)


def test_tables_that_are_divided_already(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "w/a.wav", "w/b.wav")
    for split in ("train", "test"):
        (tmp_path / f"mine/{split}.csv").write_text("file,label\na.wav,dog\nb.wav,cat\n")
    (tmp_path / "mine/notes.csv").write_text("who,when\nann,may\n")
    found, rows = look(tmp_path)
    assert list(found.origins) == ["train", "test"] and classes(rows["test"]) == ["dog", "cat"]


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": "rain falls\n", "b.txt": "a dog\nbarks"},
        {"words.txt": "a.wav rain falls\nb.wav\ta dog barks\n"},
        {"metadata.csv": "a|rain falls|Rain falls.\nb|a dog barks|A dog barks.\n"},
        {"trans.txt": "w/a rain falls\nw/b a dog barks\n"},
    ],
    ids=["a text beside each", "a file of lines", "LJSpeech", "LibriSpeech"],
)
def test_recordings_with_texts(tmp_path: Path, files: dict[str, str]) -> None:
    tones(tmp_path / "mine", "w/a.wav", "w/b.wav")
    for name, content in files.items():
        (tmp_path / "mine/w" / name).write_text(content)
    found, rows = look(tmp_path)
    assert [row.captions for row in rows["all"]] == [("rain falls",), ("a dog barks",)]
    assert "taken for captions" in found.told[0]
    assert (tmp_path / "data/table.tsv").read_text().startswith("file\tcaption\nw/a.wav\train falls\n")


def test_names_that_begin_with_their_label(tmp_path: Path) -> None:
    tones(
        tmp_path / "mine",
        *(f"{digit}_{who}_{take}.wav" for digit in (3, 7) for who in ("ann", "bob") for take in (0, 1)),
    )
    found, rows = look(tmp_path)
    assert classes(rows["all"]) == ["3"] * 4 + ["7"] * 4 and "names that begin with their label: 3, 7" in found.told[0]


def test_each_folder_s_file_of_lines_is_read_before_folders_are_labels(tmp_path: Path) -> None:
    """LibriSpeech: folders of speakers are no labels where every recording has its words."""
    for place in ("84/1", "84/2", "251/1"):
        stem = place.replace("/", "-")
        tones(tmp_path / "mine", f"{place}/{stem}-0.wav", f"{place}/{stem}-1.wav")
        (tmp_path / "mine" / place / f"{stem}.trans.txt").write_text(f"{stem}-0 GO {stem}\n{stem}-1 STAY {stem}\n")
    found, rows = look(tmp_path)
    assert len(rows["all"]) == 6 and "a line each in 251/1/251-1.trans.txt, 84/1/84-1" in found.told[0]
    assert {row.captions[0] for row in rows["all"]} >= {"GO 84-1", "STAY 251-1"}


def test_a_text_that_is_none_beside_folders_of_labels_is_nothing(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "dog/1.wav", "rain/2.wav")
    (tmp_path / "mine/README.txt").write_bytes("caf\u00e9".encode("latin1"))
    (tmp_path / "mine/empty.txt").touch()
    assert classes(look(tmp_path)[1]["all"]) == ["dog", "rain"]
    with pytest.raises(ForeignError, match=r"README\.txt, line 1: not UTF-8"):
        tones(tmp_path / "mine", "1.wav", *(f"{n}.wav" for n in range(9)))
        look(tmp_path)


def test_numbers_in_lines_do_not_hide_folders_of_labels(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "dog/1.wav", "rain/2.wav")
    (tmp_path / "mine/list.txt").write_text("dog/1.wav 0\nrain/2.wav 1\n")
    assert classes(look(tmp_path)[1]["all"]) == ["dog", "rain"]


def test_folders_may_be_links_and_lie_deep(tmp_path: Path) -> None:
    tones(tmp_path / "elsewhere", "dog/1.wav", "rain/1.wav")
    for label in ("dog", "rain"):
        (tmp_path / "mine/data/audio").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine/data/audio" / label).symlink_to(tmp_path / "elsewhere" / label)
    (tmp_path / "mine/data/up").symlink_to("..")
    found, rows = look(tmp_path)
    assert classes(rows["all"]) == ["dog", "rain"] and "below data/audio" in found.told[0]


def test_splits_beside_other_folders_are_no_labels(tmp_path: Path) -> None:
    for split in ("train", "test", "extra"):
        tones(tmp_path / "mine", f"{split}/a/1.wav", f"{split}/b/1.wav")
    found, rows = look(tmp_path)
    assert list(rows) == ["train", "test"] and classes(rows["test"]) == ["a", "b"]
    assert found.told[1] == "not read: extra"


def test_what_else_lies_there_is_named(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "1.wav", "2.wav")
    for name, content in (
        ("a.parquet", b"PAR1"),
        ("b.zip", b"PK\x03\x04"),
        ("c.jsonl", b"{}"),
        ("d.csv", b"file,x,y\n1.wav,0,1\n2.wav,1,0\n"),
    ):
        (tmp_path / "mine" / name).write_bytes(content)
    with pytest.raises(NotUnderstood) as told:
        look(tmp_path)
    for words in ("a.parquet is Parquet", "b.zip is compressed (zip)", "c.jsonl may say it", "d.csv has no column"):
        assert words in str(told.value)


def test_a_table_that_says_nothing_is_named_where_folders_are_taken(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "dog/1.wav", "rain/2.wav")
    (tmp_path / "mine/t.csv").write_text("x,y\n1,2\n")
    assert look(tmp_path)[0].told[1] == "not read: t.csv, which name no recordings and what these are"


@pytest.mark.parametrize(
    "files",
    [
        {"1.txt": "0.000000\t0.100000\tdog\n", "2.txt": "0.1\t0.2\train\n"},
        {"1.txt": "1\n00:00:00,000 --> 00:00:00,100\na dog\n", "2.txt": "rain\n"},
        {"text": "1 a dog\n2 rain falls\n", "segments": "1 1 0.0 0.1\n2 2 0.1 0.2\n"},
    ],
)
def test_texts_of_parts_are_not_taken_for_texts_of_the_whole(tmp_path: Path, files: dict[str, str]) -> None:
    tones(tmp_path / "mine", "1.wav", "2.wav")
    for name, text in files.items():
        (tmp_path / "mine" / name).write_text(text)
    with pytest.raises(NotUnderstood, match="write a table with the columns file, start, end"):
        look(tmp_path)


@pytest.mark.parametrize("names", [("fold1", "fold2"), ("ESC.fold-1", "ESC.fold-2"), ("X_train", "X_test")])
def test_splits_of_any_kind_are_no_labels(tmp_path: Path, names: tuple[str, str]) -> None:
    tones(tmp_path / "mine", *(f"audio/{name}/{n}a.wav" for name in names for n in (1, 2, 3)))
    with pytest.raises(NotUnderstood):
        look(tmp_path)


def test_what_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotUnderstood, match="expected a folder with recordings"):
        understand(tmp_path / "gone", tmp_path / "data")
    tones(tmp_path / "mine", "a.wav", "b.wav", "c.wav")
    with pytest.raises(NotUnderstood, match=r"3 recordings and nothing that says what they are. Expected one of"):
        understand(tmp_path / "mine", tmp_path / "data")


def test_one_label_for_everything_says_nothing(tmp_path: Path) -> None:
    tones(tmp_path / "mine", *(f"dog_{take}.wav" for take in range(6)))
    with pytest.raises(NotUnderstood, match="6 recordings and nothing that says what they are"):
        understand(tmp_path / "mine", tmp_path / "data")


def test_another_folder_takes_the_place_of_the_first(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tones(tmp_path / name, f"{name}/1.wav", f"{name}/2.wav", "rain/1.wav")
        understand(tmp_path / name, tmp_path / "data")
        assert (tmp_path / "data/recordings").resolve() == tmp_path / name
