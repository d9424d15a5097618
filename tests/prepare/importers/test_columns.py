"""Which records are part of a data set, and what their fields say."""

from pathlib import Path

import pytest

from megatron_af.config import ImportConfig
from megatron_af.foreign import ForeignError
from tests.data.toy import write_tone
from tests.prepare.importing import dump, problems, run, table

ASKED = {"audio": "file", "prompt": "q", "output": "a"}


def answered(folder: Path) -> None:
    write_tone(folder / "a.wav", 0.5, 0)
    said = [("dog?", "yes"), ("dog?", "Yes"), ("rain?", "yes"), ("rain?", "no"), ("how many?", "two")]
    table(folder / "t.csv", [{"file": "a.wav", "q": q, "a": a, "split": "test"} for q, a in said])


def test_records_that_do_not_fit_are_no_part_and_no_problem(tmp_path: Path) -> None:
    answered(tmp_path)
    origin = ImportConfig(format="csv", path="t.csv", columns=ASKED, where={"a": "(?i)yes|no", "split": "test"})
    rows, report = run(tmp_path, origin)
    assert [row.questions[0].output for row in rows] == ["yes", "Yes", "yes", "no"] and not report.left_out
    whole = ImportConfig(format="csv", path="t.csv", columns=ASKED, where={"a": "ye"})
    assert run(tmp_path, whole)[0] == [], "the whole text must fit"
    with pytest.raises(ForeignError, match=r"origin\.where\.a: '\(' is no regular expression"):
        run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=ASKED, where={"a": "("}))
    with pytest.raises(ForeignError, match=r"and where .*'gone'.*the table has"):
        run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=ASKED, where={"gone": "x"}))


def test_one_record_is_kept_where_all_agree(tmp_path: Path) -> None:
    answered(tmp_path)
    rows, _ = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=ASKED, agreed=True))
    kept = [(row.questions[0].prompt, row.questions[0].output) for row in rows]
    assert kept == [("dog?", "yes"), ("how many?", "two")]


def test_several_labels_are_one_answer_and_options_stand_beside_it(tmp_path: Path) -> None:
    write_tone(tmp_path / "1.wav", 0.5, 0)
    write_tone(tmp_path / "2.wav", 0.5, 0)
    table(tmp_path / "t.csv", [{"f": "1", "l": "Rain,Dog_bark"}, {"f": "2", "l": "Wind"}, {"f": "2", "l": ""}])
    origin = ImportConfig(format="csv", path="t.csv", columns={"audio": "{f}.wav", "labels": "l"})
    (both, one), report = run(tmp_path, origin)
    assert (both.questions[0].output, both.meta) == ("dog bark, rain", {"labels": ["dog bark", "rain"]})
    assert both.questions[0].options == one.questions[0].options == ("dog bark", "rain", "wind")
    assert "no labels: l is empty" in problems(tmp_path, report)[0]
    table(tmp_path / "m.csv", [{"f": "1", "q": "what?", "right": "rain", "wrong_1": "hail", "wrong_2": "wind"}])
    columns = {"audio": "{f}.wav", "prompt": "q", "output": "right", "options": "right,wrong_1,wrong_2"}
    (row,), _ = run(tmp_path, ImportConfig(format="csv", path="m.csv", columns=columns))
    assert (row.questions[0].output, row.questions[0].options) == ("rain", ("rain", "hail", "wind"))


def test_options_may_be_under_their_letters_and_have_no_gap_before_a_letter(tmp_path: Path) -> None:
    write_tone(tmp_path / "1.wav", 0.5, 0)
    asked = {"f": "1.wav", "q": "what?"}
    dump(tmp_path / "l.json", [{**asked, "a": "B", "o": {"A": "rain", "B": "hail"}}])
    columns = {"audio": "f", "prompt": "q", "output": "a", "options": "o"}
    (row,), _ = run(tmp_path, ImportConfig(format="json", path="l.json", columns=columns))
    assert row.questions[0].options == ("rain", "hail")
    choices = {"w": "rain", "x": "hail", "y": "", "z": "wind"}
    answers = ["D", "B", "wind", "1"]
    lines = [{**asked, **choices, "a": a} for a in answers]
    table(tmp_path / "t.csv", [*lines, {**asked, **choices, "z": "", "a": "B"}])
    rows, report = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns={**columns, "options": "w,x,y,z"}))
    assert [row.questions[0].output for row in rows] == ["B", "wind", "1", "B"]
    assert "column 'y', an option, is empty and others behind it are not" in problems(tmp_path, report)[0]


@pytest.mark.parametrize("nothing", ["nan", "<NA>", "#N/A", "null", "#REF!", "#VALUE!", "#DIV/0!", "None"])
def test_what_programs_write_for_no_text_is_none(tmp_path: Path, nothing: str) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    said = [{"f": "a.wav", "q": "what?", "t": text} for text in ("rain", nothing, f"{nothing} of it")]
    table(tmp_path / "t.csv", said)
    kept = {}
    for what in ("caption", "output", "label", "class", "labels"):
        columns = {"audio": "f", what: "t"} | ({"prompt": "q"} if what == "output" else {})
        rows, report = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))
        kept[what] = (len(rows), len(problems(tmp_path, report)))
        offered = {option for row in rows for question in row.questions for option in question.options}
        assert nothing == "None" or nothing.lower() not in offered
    anywhere = (3, 0) if nothing == "None" else (2, 1)
    assert kept == {"caption": (2, 1), **dict.fromkeys(("output", "label", "class", "labels"), anywhere)}


def test_times_are_seconds_by_their_columns_name(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    table(tmp_path / "t.csv", [{"f": "a.wav", "start_ms": 100, "num_end_frames": 3, "duration_s": 0.1, "said": "x"}])
    columns = {"audio": "f", "caption": "said"}
    for what, name in (("start", "start_ms"), ("end", "num_end_frames")):
        with pytest.raises(ForeignError, match=rf"origin\.columns\.{what}: '{name}' is by its name not in seconds"):
            run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns | {what: name}))
    rows, _ = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns | {"duration": "duration_s"}))
    assert rows[0].clips[0].duration == 0.1


def test_a_part_of_no_length_names_its_line_and_nothing_visible_is_no_caption(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    table(tmp_path / "t.csv", [{"f": "a.wav", "d": 0, "said": "x"}, {"f": "a.wav", "d": "", "said": "\u200b"}])
    columns = {"audio": "f", "caption": "said", "duration": "d"}
    _, report = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))
    none, blank = problems(tmp_path, report)
    assert none == "line 2: its part of a.wav lasts 0 s; expected more than none"
    assert blank == "line 3: no caption: said is empty"


@pytest.mark.parametrize("mark", [";", "|", "; "])
def test_labels_between_semicolons_or_bars_may_hold_commas(tmp_path: Path, mark: str) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    speech = "Male speech, man speaking"
    table(tmp_path / "t.csv", [{"f": "a.wav", "l": f"{speech}{mark}Dog"}, {"f": "a.wav", "l": speech}])
    rows, _ = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns={"audio": "f", "labels": "l"}))
    assert [row.meta["labels"] for row in rows] == [["dog", speech.lower()], [speech.lower()]]
    assert rows[0].questions[0].options == ("dog", speech.lower())


def test_parts_that_no_column_is_named_for_are_not_learnt_as_the_whole(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 4.0, 0)
    write_tone(tmp_path / "b.wav", 4.0, 1)
    rows = [("a.wav", "0", "4", "a dog"), ("b.wav", "0", "2", "rain"), ("b.wav", "2.0", "4", "a horn")]
    table(tmp_path / "t.csv", [dict(zip(("file", "onset", "offset", "c"), row, strict=True)) for row in rows])
    columns = {"audio": "file", "caption": "c"}
    with pytest.raises(ForeignError, match=r"line 3 and line 4 are about other parts of b\.wav: 'onset' is \"0\" and"):
        run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))
    with pytest.raises(ForeignError, match=r"'offset' is \"2\" and \"4\""):
        run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns | {"start": "onset"}))
    columns |= {"start": "onset", "end": "offset"}
    found, _ = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))
    assert [(row.clips[0].start, row.clips[0].duration) for row in found] == [(0.0, 4.0), (0.0, 2.0), (2.0, 2.0)]


def test_five_captions_of_one_part_are_of_one_recording(tmp_path: Path) -> None:
    """AudioCaps says where its ten seconds were in a video, in each of five lines."""
    write_tone(tmp_path / "a.wav", 1.0, 0)
    said = [{"file": "a.wav", "start_time": "30", "c": f"rain {n}"} for n in range(5)]
    table(tmp_path / "t.csv", said)
    rows, _ = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns={"audio": "file", "caption": "c"}))
    assert len(rows) == 5 and {row.clips[0].start for row in rows} == {0.0}


@pytest.mark.parametrize("what", ["label", "labels"])
def test_one_label_alone_is_told(tmp_path: Path, what: str) -> None:
    for name in "ab":
        write_tone(tmp_path / f"{name}.wav", 0.3, ord(name))
    table(tmp_path / "t.csv", [{"file": f"{name}.wav", "split": "train", "name": name} for name in "ab"])
    columns = {"audio": "file", what: "split"}
    _, report = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))
    assert [told for _, told in report.notes.values()] == [
        "all 2 are 'train': column 'split' may be the wrong one, or the table a part of a larger one"
    ]
    columns = {"audio": "file", what: "name"}
    assert run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))[1].notes == {}


@pytest.mark.parametrize("text", ['{"en": "rain"}', "{'en': 'rain'}"])
def test_an_object_as_text_is_no_caption(tmp_path: Path, text: str) -> None:
    write_tone(tmp_path / "a.wav", 0.3, 0)
    table(tmp_path / "t.csv", [{"file": "a.wav", "text": said} for said in (text, "{rain}: falls")])
    origin = ImportConfig(format="csv", path="t.csv", columns={"audio": "file", "caption": "text"})
    rows, report = run(tmp_path, origin)
    assert [row.captions for row in rows] == [("{rain}: falls",)]
    assert "holds an object as text" in problems(tmp_path, report)[0]


def test_a_stated_part_that_is_taken_for_the_whole_is_told(tmp_path: Path) -> None:
    for name in "ab":
        write_tone(tmp_path / f"{name}.wav", 4.0, 0)
    write_tone(tmp_path / "c.wav", 4.0, 0)
    rows = [("a.wav", "0", "a dog"), ("b.wav", "2.0", "a horn"), ("c.wav", "1", "rain")]
    table(tmp_path / "t.csv", [dict(zip(("file", "start_time", "c"), row, strict=True)) for row in rows])
    columns = {"audio": "file", "caption": "c"}
    made, report = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))
    ((kind, (count, told)),) = report.notes.items()
    assert len(made) == 3 and kind.startswith("rows that state a part and are about the whole recording") and count == 2
    assert told == "line 3: 'start_time' is \"2.0\""
    columns["start"] = "start_time"
    assert run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))[1].notes == {}
