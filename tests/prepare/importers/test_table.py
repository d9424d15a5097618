"""Tables are read as their dialect says, or the line is named."""

from pathlib import Path

import pytest

from megatron_af.config import ImportConfig
from megatron_af.data.templates import CLASS_PHRASES
from megatron_af.foreign import ForeignError
from tests.data.toy import write_tone
from tests.prepare.importing import problems, run, table


def test_tables_of_clotho_audiocaps_musiccaps(tmp_path: Path) -> None:
    write_tone(tmp_path / "c/a b.wav", 2.0, 0)
    table(tmp_path / "clotho.csv", [{"file_name": "a b.wav", "caption_1": "one", "caption_2": "two"}])
    columns = {"audio": "file_name", "caption": "caption_1,caption_2"}
    (row,), _ = run(tmp_path, ImportConfig(format="csv", path="clotho.csv", audio="c", columns=columns))
    assert row.captions == ("one", "two") and [q.output for q in row.questions] == ["one", "two"]
    assert row.questions[0].prompt == "describe the sound in a sentence."
    write_tone(tmp_path / "m/yt1.wav", 30.0, 1)
    music = {"ytid": "yt1", "start_s": 10, "end_s": 20, "caption": "a tune", "aspect_list": "['x']"}
    table(tmp_path / "music.csv", [music, music | {"ytid": "yt2"}])
    columns = {"audio": "{ytid}.wav", "id": "ytid", "start": "start_s", "end": "end_s", "caption": "caption"}
    (row,), report = run(
        tmp_path,
        ImportConfig(
            format="csv",
            path="music.csv",
            audio="m",
            columns=columns,
            prompt="describe the music.",
            task="music captioning",
        ),
    )
    assert (row.id, row.clips[0].start, row.clips[0].duration) == ("yt1", 10.0, 10.0) and report.left_out == {
        "missing": 1
    }
    assert (row.questions[0].prompt, row.task) == ("describe the music.", "music captioning")
    said = [{"audiocap_id": i, "youtube_id": "-x y", "start_time": 30, "caption": f"rain {i}"} for i in range(2)]
    table(tmp_path / "audiocaps.csv", said)  # cut out of the video already: start_time is no place in the file
    write_tone(tmp_path / "ac/-x y.wav", 10.0, 2)
    columns = {"audio": "{youtube_id}.wav", "id": "audiocap_id", "caption": "caption"}
    rows, _ = run(tmp_path, ImportConfig(format="csv", path="audiocaps.csv", audio="ac", columns=columns))
    assert [(r.id, r.captions, r.clips[0].start, r.clips[0].duration) for r in rows] == [
        ("0", ("rain 0",), 0.0, 10.0), ("1", ("rain 1",), 0.0, 10.0),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"origin.columns must name audio.*the table has"):
        run(tmp_path, ImportConfig(format="csv", path="music.csv", columns={"audio": "file"}))


def test_questions_with_the_same_two_answers_get_the_binary_options(tmp_path: Path) -> None:
    write_tone(tmp_path / "x.wav", 0.5, 0)
    lines = [{"file": "x.wav", "q": "is it a dog?", "a": "Yes"}, {"file": "x.wav", "q": "is it loud?", "a": "no"}]
    table(tmp_path / "aqa.csv", lines)
    columns = {"audio": "file", "prompt": "q", "label": "a"}
    rows, _ = run(
        tmp_path, ImportConfig(format="csv", path="aqa.csv", columns=columns, task="audio question answering")
    )
    assert [r.questions[0].prompt for r in rows] == [
        "is it a dog?\nOPTIONS:\nyes.\nno.",
        "is it loud?\nOPTIONS:\nyes.\nno.",
    ]
    assert [r.questions[0].output for r in rows] == ["yes", "no"]
    assert [(r.captions, r.meta, r.questions[0].skill) for r in rows] == [((), {}, "audio question answering")] * 2
    with pytest.raises(ValueError, match=r"outputs answer a prompt"):
        run(tmp_path, ImportConfig(format="csv", path="aqa.csv", columns={"audio": "file", "output": "a"}))


def test_labels_from_a_table_and_from_folders(tmp_path: Path) -> None:
    files = {"1-1.wav": "dog_bark", "1-2.wav": "air_conditioner", "1-3.wav": "dog_bark"}
    for name, label in files.items():
        write_tone(tmp_path / "esc" / name, 0.5, 0)
        write_tone(tmp_path / "folders" / label / name, 0.5, 0)
    table(tmp_path / "esc50.csv", [{"filename": n, "fold": 1, "category": c} for n, c in files.items()])
    expected = "classify this sound.\nOPTIONS:\n - air conditioner.\n - dog bark."
    columns = {"audio": "filename", "label": "category"}
    rows, _ = run(tmp_path, ImportConfig(format="csv", path="esc50.csv", audio="esc", columns=columns))
    assert [r.questions[0].output for r in rows] == ["dog bark", "air conditioner", "dog bark"]
    assert all(r.questions[0].prompt == expected for r in rows)
    assert [r.meta["class"] for r in rows] == ["dog bark", "air conditioner", "dog bark"]
    rows, _ = run(tmp_path, ImportConfig(format="labels", path="folders"))
    assert {r.meta["class"] for r in rows} == {"air conditioner", "dog bark"}
    assert rows[0].captions == tuple(p.format(rows[0].meta["class"]) for p in CLASS_PHRASES)
    assert rows[0].questions[0].skill == "event classification"
    assert sorted(r.questions[0].output for r in rows) == ["air conditioner", "dog bark", "dog bark"]
    assert rows[0].questions[0].prompt == expected and rows[0].questions[0].options == ("air conditioner", "dog bark")
    table(tmp_path / "emo.csv", [{"filename": "1-1.wav", "category": "Anger"}])
    origin = ImportConfig(format="csv", path="emo.csv", audio="esc", columns=columns, task="emotion classification")
    assert run(tmp_path, origin)[0][0].questions[0].output == "angry"


def test_a_line_brings_class_skill_captions_and_answers(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    lines = [
        {"file": "a.wav", "kind": "Dog_Bark", "said": "a dog barks", "q": "how many?", "a": "two", "s": "counting"},
        {"file": "a.wav", "kind": "rain", "said": "", "q": "", "a": "", "s": ""},
        {"file": "a.wav", "kind": "", "said": "wind", "q": "", "a": "", "s": ""},
        {"file": "a.wav", "kind": "rain", "said": "", "q": "how many?", "a": "", "s": ""},
        {"file": "a.wav", "kind": "rain", "said": "", "q": "", "a": "two", "s": ""},
        {"file": "a.wav", "kind": "", "said": "", "q": "", "a": "", "s": ""},
    ]
    table(tmp_path / "t.csv", lines)
    columns = {"audio": "file", "label": "kind", "caption": "said", "prompt": "q", "output": "a", "skill": "s"}
    (whole, classed, described), report = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))
    options = "classify this sound.\nOPTIONS:\n - dog bark.\n - rain."
    assert [(q.prompt, q.output, q.skill) for q in whole.questions] == [
        ("how many?", "two", "counting"),
        (options, "dog bark", "counting"),
        ("describe the sound in a sentence.", "a dog barks", "counting"),
    ]
    assert whole.captions == ("a dog barks",) and whole.meta == {"class": "dog bark"}
    assert [(q.output, q.skill, q.options) for q in classed.questions] == [
        ("rain", "event classification", ("dog bark", "rain"))
    ]
    assert classed.captions == ("rain", "the sound of rain", "this is a sound of rain")
    assert [(q.output, q.skill) for q in described.questions] == [("wind", "audio captioning")]
    assert described.captions == ("wind",) and not described.meta
    for words, problem in zip(
        ["line 5: column 'q' asks", "line 6: column 'a' answers", "line 7: no output: a is empty, no label: kind is"],
        problems(tmp_path, report),
        strict=True,
    ):
        assert words in problem


def test_a_class_alone_is_not_asked_for(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    table(tmp_path / "t.csv", [{"file": "a.wav", "kind": "rain"}])
    (row,), _ = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns={"audio": "file", "class": "kind"}))
    assert row.meta == {"class": "rain"} and row.captions[1] == "the sound of rain" and not row.questions
    with pytest.raises(ForeignError, match=r"origin.columns.klass: expected one of .*did you mean class"):
        run(tmp_path, ImportConfig(format="csv", path="t.csv", columns={"audio": "file", "klass": "kind"}))


def captions(folder: Path, content: str | bytes, name: str = "t.csv") -> tuple[list[str], list[str]]:
    write_tone(folder / "w/a.wav", 1.0, 0)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    columns = {"audio": "file", "caption": "caption"}
    rows, report = run(folder, ImportConfig(format="csv", path=name, audio="w", columns=columns))
    return [row.captions[0] for row in rows], problems(folder, report)


@pytest.mark.parametrize("place", [1, 40, 99, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("text", ['"a dog barks', '12" vinyl', '"x" y'])
def test_a_quotation_mark_that_nobody_closes_costs_its_own_line(tmp_path: Path, place: int, text: str) -> None:
    lines = [f"a.wav,road {i}" for i in range(place + 60)]
    lines[place] = f"a.wav,{text}"
    lines[place + 30] = 'a.wav,"one, and another"'
    got, said = captions(tmp_path, "file,caption\n" + "\n".join(lines) + "\n")
    if text == '12" vinyl':  # no quotation, for the text does not begin with it
        assert len(got) == len(lines) and not said
        return
    assert len(got) == len(lines) - 1 and "one, and another" in got
    assert len(said) == 1 and f"line {place + 2}: a quotation mark opens" in said[0]


def test_two_open_marks_do_not_hide_the_lines_between(tmp_path: Path) -> None:
    got, said = captions(tmp_path, 'file,caption\na.wav,"open\na.wav,rain\na.wav,wind 12"\na.wav,hail\n')
    assert got == ["rain", 'wind 12"', "hail"] and len(said) == 1 and "line 2" in said[0]
    got, said = captions(tmp_path, 'file,caption\na.wav,"rain,\nthen wind"\na.wav,hail\n')
    assert got == ["rain,\nthen wind", "hail"] and not said


def test_tsv_is_never_quoted(tmp_path: Path) -> None:
    texts = ['"Stop!" says a man', '"We go now', '12" vinyl', "rain"]
    got, said = captions(tmp_path, "file\tcaption\n" + "".join(f"a.wav\t{t}\n" for t in texts), "t.tsv")
    assert got == texts and not said


def test_lines_that_do_not_fit_are_named(tmp_path: Path) -> None:
    got, said = captions(
        tmp_path, "file,caption\na.wav,rain, and wind\na.wav\n\n,rain\na.wav,\na.wav,ok\na.wav,x,\na.w\0av,y\n"
    )
    assert got == ["ok", "x"]
    for words, problem in zip(
        ["line 2: 3 fields, the header has 2", "line 3: 1 ", "line 5: column 'file'", "line 6: no caption", "line 9"],
        said, strict=True,
    ):  # fmt: skip
        assert words in problem


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
def test_every_common_dialect_is_read(tmp_path: Path, encoding: str, end: str, between: str) -> None:
    lines = [f"file{between}caption", f"a.wav{between}caf\u00e9", f"a.wav{between}rain"]
    assert captions(tmp_path, end.join([*lines, ""]).encode(encoding)) == (["caf\u00e9", "rain"], [])


def test_other_encodings_are_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match=r"t.csv, line 3: not UTF-8 .byte 0xe9.*iconv -f windows-1252"):
        captions(tmp_path, "file,caption\na.wav,rain\na.wav,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ForeignError, match="UTF-16 without its mark"):
        captions(tmp_path, "file,caption\na.wav,rain\n".encode("utf-16-le"))
    with pytest.raises(ForeignError, match="two columns are called 'caption'"):
        captions(tmp_path, "file,caption,caption\na.wav,x,y\n")


def test_audioset_s_header_is_a_comment(tmp_path: Path) -> None:
    write_tone(tmp_path / "w/a.wav", 3.0, 0)
    (tmp_path / "t.csv").write_text('# made in 2017\n# YTID, start_seconds, positive_labels\na, 0.000, "/m/1,/m/2"\n')
    columns = {"audio": "{YTID}.wav", "start": "start_seconds", "label": "positive_labels"}
    (row,), _ = run(tmp_path, ImportConfig(format="csv", path="t.csv", audio="w", columns=columns))
    assert row.questions[0].output == "/m/1,/m/2" and row.clips[0].duration == 3.0


def test_a_name_that_no_file_can_have_is_one_missing_recording(tmp_path: Path) -> None:
    got, said = captions(tmp_path, "file,caption\na.wav,rain\n" + "long " * 80 + ".wav,rain\na.wav,wind\n")
    assert got == ["rain", "wind"] and len(said) == 1 and "does not exist" in said[0]


def test_excel_s_first_line_is_none(tmp_path: Path) -> None:
    assert captions(tmp_path, "sep=;\nfile;caption\na.wav;rain, far\n") == (["rain, far"], [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\"['a dog', \"\"it's a cat\"\"]\"", ["a dog", "it's a cat"]),
        ('"[""a dog"", ""caf\\u00e9""]"', ["a dog", "café"]),
        ("[laughs]", ["[laughs]"]),
        ("[1]", ["[1]"]),
    ],
)
def test_a_list_in_one_text_is_a_list(tmp_path: Path, text: str, expected: list[str]) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    (tmp_path / "t.csv").write_text(f"my file,caption\na,{text}\na,['a' 'b']\n")
    origin = ImportConfig(format="csv", path="t.csv", columns={"audio": "{my file}.wav", "caption": "caption"})
    (row,), report = run(tmp_path, origin)
    assert list(row.captions) == expected and "a list without commas" in problems(tmp_path, report)[0]


def test_a_mark_in_a_table_is_none(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    (tmp_path / "t.csv").write_text("file,q,a\na.wav,<audio>what?,rain\na.wav,<image>what?,rain\n")
    columns = {"audio": "file", "prompt": "q", "output": "a"}
    (row,), report = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))
    assert row.questions[0].prompt == "what?" and "line 3: its text has <image>" in problems(tmp_path, report)[0]


def test_a_text_without_end_is_named(tmp_path: Path) -> None:
    good, said = captions(tmp_path, f'file,caption\na.wav,"{"x" * 140_000}"\na.wav,ok\n')
    assert good == ["ok"] and said == ["line 2: its text has more than 131,072 characters"]
    good, said = captions(tmp_path, f"file,caption\na.wav,ok\na.wav,{'x' * 140_000}\n")
    assert good == ["ok"] and said == ["line 3: its text has more than 131,072 characters"]
