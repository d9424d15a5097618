"""Tables of other people: which column is which, and where the recordings are."""

from pathlib import Path

import pytest

from megatron_af.data.rows import Row
from megatron_af.foreign import ForeignError
from megatron_af.start.tables import split_of
from tests.start.looking import classes, look, tones

DOG_RAIN = ("dog", "rain")


def told_of(tmp_path: Path, name: str, content: str) -> tuple[list[str], list[Row]]:
    place = tmp_path / "mine" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)
    found, rows = look(tmp_path)
    return found.told, rows["all"]


@pytest.mark.parametrize(
    "content",
    [
        "sep=;\r\nfile;label\r\n1.wav;dog\r\n2.wav;rain\r\n",
        '# made in 2020\n# file, label\n1.wav, "dog"\n2.wav, "rain"\n',
        "file,target,category\n1.wav,0,dog\n2.wav,1,rain\n",
        "file,label,,\n1.wav,dog,,\n2.wav,rain,,\n",
        "file,label\n1.WAV,dog\n2.Wav,rain\n",
        ",label\n1.wav,dog\n2.wav,rain\n",
        "file\u2028,label\n1.wav,dog\n2.wav,rain\n",
        "/far/x/1.wav,dog\n/far/y/2.wav,rain\n".join(["file,label\n", ""]),
        "file,label\nx\\1.wav,dog\ny\\2.wav,rain\n",
    ],
)
def test_ways_of_writing_a_table(tmp_path: Path, content: str) -> None:
    tones(tmp_path / "mine", "w/1.wav", "w/2.wav")
    told, rows = told_of(tmp_path, "t.csv", content)
    assert classes(rows) == ["dog", "rain"] and "in several folders" not in told[0]


def test_recordings_in_several_folders_are_found_and_times_of_the_whole_are_none(tmp_path: Path) -> None:
    """UrbanSound8K: ``start`` and ``end`` are those of the recording that a piece was cut out of."""
    tones(tmp_path / "mine", *(f"audio/fold{n}/{n}.wav" for n in (1, 2, 3)))
    lines = "".join(f"{n}.wav,12.5,16.5,{n},{('dog', 'rain')[n % 2]}\n" for n in (1, 2, 3))
    told, rows = told_of(tmp_path, "metadata/meta.csv", f"slice_file_name,start,end,fold,class\n{lines}")
    assert classes(rows) == ["rain", "dog", "rain"] and rows[0].clips[0].path == "recordings/audio/fold1/1.wav"
    assert "in several folders" in told[0] and "lie behind the ends" in told[0]
    assert (tmp_path / "data/table.tsv").read_text().startswith("slice_file_name\tstart")


def test_times_within_the_recordings_are_read(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "1.wav", "2.wav")
    told, rows = told_of(tmp_path, "t.csv", "file,start,end,label\n1,0.05,0.15,dog\n2,0.1,0.2,rain\n")
    assert [round(row.clips[0].start, 2) for row in rows] == [0.05, 0.1] and "lie behind" not in told[0]


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("file,start_time,end_time,text", "1.wav,0.05,0.15,a b\n2.wav,0.1,0.2,c d\n"),
        ("file,from,to,text", "1.wav,0.05,0.15,a b\n2.wav,0.1,0.2,c d\n"),
        ("audio_filepath,offset,duration,text", "1.wav,0.05,0.1,a b\n2.wav,0.1,0.1,c d\n"),
        ("file,start,length,text", "1.wav,0.05,0.1,a b\n2.wav,0.1,0.1,c d\n"),
        ("file,onset,offset,duration,text", "1.wav,0.05,0.15,0.1,a b\n2.wav,0.1,0.2,0.1,c d\n"),
    ],
)
def test_every_name_of_a_part_is_read(tmp_path: Path, header: str, lines: str) -> None:
    tones(tmp_path / "mine", "1.wav", "2.wav")
    clips = [row.clips[0] for row in told_of(tmp_path, "t.csv", f"{header}\n{lines}")[1]]
    assert [(round(clip.start, 2), round(clip.duration, 2)) for clip in clips] == [(0.05, 0.1), (0.1, 0.1)]


def test_parts_in_another_unit_are_refused_and_words_are_no_times(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "1.wav", "2.wav")
    with pytest.raises(ForeignError, match=r"t\.csv: column 'start_ms' says by its name that it is not in seconds"):
        told_of(tmp_path, "t.csv", "file,start_ms,end_ms,text\n1.wav,50,150,a b\n2.wav,100,200,c d\n")
    _, rows = told_of(tmp_path, "t.csv", "file,from,length,text\n1.wav,Berlin,long,a b\n2.wav,Rome,short,c d\n")
    assert [row.captions for row in rows] == [("a b",), ("c d",)]


def test_several_labels_and_what_their_codes_mean(tmp_path: Path) -> None:
    """FSD50K, whose folders are splits, and AudioSet."""
    tones(tmp_path / "mine", "F.dev_audio/1.wav", "F.eval_audio/2.wav")
    _, rows = told_of(tmp_path, "truth/dev.csv", 'fname,labels,mids,split\n1,"Dog,Animal",/m/0,train\n')
    assert rows[0].questions[0].output == "animal, dog"
    (tmp_path / "mine/truth/dev.csv").unlink()
    with pytest.raises(ForeignError, match=r"labels are codes.*class_labels_indices"):
        told_of(tmp_path, "t.csv", '# YTID, positive_labels\n1, "/m/0bt,/t/d1"\n')
    (tmp_path / "mine/words.csv").write_text("index,mid,display_name\n0,/m/0bt,Dog\n1,/t/d1,Rain\n")
    _, rows = told_of(tmp_path, "t.csv", '# YTID, positive_labels\n1, "/m/0bt,/t/d1"\n')
    assert rows[0].questions[0].output == "dog, rain"


def test_folders_say_which_split_a_table_is(tmp_path: Path) -> None:
    for split in ("train", "test"):
        tones(tmp_path / "mine", f"{split}/1.wav", f"{split}/2.wav")
        (tmp_path / "mine" / split / "metadata.csv").write_text(f"file_name,text\n1.wav,a {split}\n2.wav,b\n")
    _, rows = look(tmp_path)
    assert {name: part[0].captions for name, part in rows.items()} == {"train": ("a train",), "test": ("a test",)}
    for split, part in rows.items():  # not the ones of the same names in the other folder
        assert part[0].clips[0].path == f"recordings/{split}/1.wav"
    assert split_of("data/dev.tsv") == "development" and split_of("meta/labels.csv") == ""


def test_a_table_that_cannot_be_read_is_not_passed_by(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "x/1.wav", "y/2.wav")
    (tmp_path / "mine/t.csv").write_bytes("file,caption\nx/1.wav,caf\u00e9\n".encode("latin1"))
    with pytest.raises(ForeignError, match=r"t\.csv, line 2: not UTF-8"):
        look(tmp_path)


def test_a_text_too_long_for_the_reader_costs_its_line(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "1.wav", "2.wav")
    (tmp_path / "mine/t.csv").write_text(f'file,label\n1.wav,"{"x" * 140_000}"\n1.wav,dog\n2.wav,rain\n')
    with pytest.raises(AssertionError):  # import fails for so large a part, and has named it
        look(tmp_path)
    assert "line 2: its text has more than" in (tmp_path / "data/all.left_out.jsonl").read_text()


def test_a_table_without_a_line_of_columns_loses_no_recording(tmp_path: Path) -> None:
    tones(tmp_path / "mine", *(f"w/{number}.wav" for number in range(8)))
    (tmp_path / "mine/t.csv").write_text("".join(f"{n}.wav,{('dog', 'rain')[n % 2]}\n" for n in range(8)))
    _, rows = look(tmp_path)
    assert [row.meta["class"] for row in rows["all"]] == ["dog", "rain"] * 4


def test_answers_that_are_letters_of_options_are_refused(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "1.wav", "2.wav")
    lines = "1.wav,what?,{},dog|rain\n2.wav,why?,{},dog|rain\n"
    (tmp_path / "mine/t.csv").write_text("file,question,answer,choices\n" + lines.format("A", "(B)"))
    with pytest.raises(ForeignError, match=r"t\.csv: the answers in 'answer' are letters of what 'choices' offers"):
        look(tmp_path)
    (tmp_path / "mine/t.csv").write_text("file,question,answer,choices\n" + lines.format("dog", "rain"))
    found, _ = look(tmp_path)
    assert "'choices' is not read" in found.told[0]


def test_tables_of_what_trains_and_what_settings_are_chosen_by(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "1.wav", "2.wav")
    for split in ("train", "valid"):
        (tmp_path / f"mine/{split}.csv").write_text("file,label\n1.wav,dog\n2.wav,cat\n")
    found, _ = look(tmp_path)
    assert list(found.origins) == ["train", "test"] and "valid.csv is measured at the end" in found.told[-1]


def test_a_text_of_several_lines_keeps_its_words_apart(tmp_path: Path) -> None:
    tones(tmp_path / "mine", "a/1.wav", "b/2.wav")
    _, rows = told_of(tmp_path, "t.csv", 'file,caption\n1.wav,"a dog\nbarks"\n2.wav,"rain\n\nfalls"\n')
    assert [row.questions[0].output for row in rows] == ["a dog barks", "rain falls"]
