"""Manifests: lazy reading, round trip, and one clear error per bad row."""

import json
import pickle
from pathlib import Path

import pytest

from megatron_af.data.rows import BadLine, Clip, Manifest, Question, Row, RowError, Span, parse_row, to_json
from megatron_af.foreign import ForeignError

ROW = Row(
    id="r-1",
    clips=(Clip(path="a/b.wav", duration=2.5, start=1.0),),
    questions=(Question(prompt="what?", output="rain", skill="what", options=("rain", "wind")),),
    captions=("rain falls",),
    negatives=("wind blows",),
    spans=(Span(start=0.5, end=1, captions=("a drop",), negatives=("a step",)),),
    task="AQA",
    meta={"split": "train"},
)


def write(path: Path, *lines: str) -> Manifest:
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    return Manifest(path)


def test_rows_round_trip_and_are_read_lazily(tmp_path: Path) -> None:
    text_only = Row(id="t", questions=(Question(prompt="", output="é 雨"),))
    rows = write(tmp_path / "m.jsonl", to_json(ROW), "", "  ", to_json(text_only), to_json(ROW), "", "")
    assert len(rows) == 3
    assert list(rows) == [ROW, text_only, ROW]
    assert rows[-1] == ROW and rows[1:] == [text_only, ROW]
    with pytest.raises(IndexError):
        rows[3]


def test_offsets_are_found_across_blocks(tmp_path: Path) -> None:
    lines = [to_json(Row(id=f"r{i}", captions=("x" * (i % 50 + 1),))) for i in range(500)]
    rows = write(tmp_path / "m.jsonl", "", *lines)
    from megatron_af.data.rows import _line_offsets

    assert (_line_offsets(rows.path, block=97) == _line_offsets(rows.path)).all()
    assert [row.id for row in rows] == [f"r{i}" for i in range(500)]


def test_empty_and_missing_manifests(tmp_path: Path) -> None:
    assert len(write(tmp_path / "empty.jsonl", "")) == 0
    assert len(write(tmp_path / "blank.jsonl", "", "", "")) == 0
    with pytest.raises(FileNotFoundError, match=r"data\.datasets"):
        Manifest(tmp_path / "missing.jsonl")


BAD = {
    '{"id": "x"': "its JSON ends too early; each object has a line of its own",
    '{"id": "x", captions}': r"no JSON in column 13 \('captions}'\)",
    '{"id": 1, CAPTION},': r"more stands behind the object \(','\); each object has a line",
    '{"id": 1, CAPTION, "task": "a", "task": "b"}': "has the key 'task' twice",
    '{"id": 1, CAPTION, "task": "caf\udce9"}': "not UTF-8 .byte 0xe9.: save the file as UTF-8",
    '{"id": ' + "9" * 5000 + "}": "a number of thousands of digits",
    "[" * 100_000: "nested too deeply",
    '{"id": null, CAPTION}': "'id' must be text or a number, got null",
    '{"id": 1, CAPTION, "meta": "x"}': "'meta' must be an object",
    '{"id": 1, CAPTION, "clips": [{"path": "a\\u0000b", "duration": 1}]}': "path must be",
    '{"id": 1, CAPTION, "clips": [{"path": "a.wav", "duration": 1, "offset": 3}]}': "seconds from .* are 'start'",
    '{"id": 1, CAPTION, "clips": [{"path": "a.wav", "duration": 1, "length": true}]}': "'length' must be bytes",
    '{"id": 1, CLIP, "spans": [{"start": 1, "end": 2500, "captions": ["b"]}]}': r"spans\[0\] ends at 2500, behind its",
    '{"id": 1, "clips": [ONE, ONE], "spans": [{"start": 0, "end": 1, "captions": ["b"]}]}': "got 2 clips",
    "[1]": "expected a JSON object",
    '{"captions": ["a"]}': "key 'id' is missing",
    '{"id": 1, "captions": ["a"], "promt": ""}': "unknown key 'promt'",
    '{"id": 1, "clip": []}': "did you mean 'clips'",
    '{"id": 1}': "at least one question, caption or span",
    '{"id": 1, "captions": [""]}': "not empty",
    '{"id": 1, "questions": [{"prompt": "a", "output": " "}]}': r"questions\[0\]: 'output' is empty",
    '{"id": 1, "questions": [{"prompt": 3, "output": "a"}]}': "'prompt' must be text",
    '{"id": 1, CAPTION, "clips": [{"path": "/etc/x.wav", "duration": 1}]}': "stay inside data.root",
    '{"id": 1, CAPTION, "clips": [{"path": "a/../../x.wav", "duration": 1}]}': "stay inside data.root",
    '{"id": 1, CAPTION, "clips": [{"path": "a.wav", "duration": NaN}]}': "'duration' must be seconds",
    '{"id": 1, CAPTION, "clips": [{"path": "a.wav", "duration": 0}]}': "above zero",
    f'{{"id": 1, CAPTION, "clips": [{{"path": "a.wav", "duration": 1{"0" * 400}}}]}}': "'duration' must be seconds",
    '{"id": 1, CAPTION, "clips": [{"path": "a.wav", "duration": 1, "start": -1}]}': "'start' must be",
    '{"id": 1, "captions": ["a"], "template": "chat"}': "template is one of",
    '{"id": 1, CAPTION, "spans": [{"start": 2, "end": 1, "captions": ["b"]}]}': r"spans\[0\]: needs 0 <= start < end",
    f'{{"id": 1, CAPTION, "spans": [{{"start": 0, "end": 1{"0" * 400}, "captions": ["b"]}}]}}': "'end' must be seconds",
    '{"id": 1, "questions": [{"prompt": "", "output": "b"}], "template": "interleaved"}': "one clip",
}


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_bad_rows_name_file_and_line(tmp_path: Path, line: str) -> None:
    full = line.replace("CAPTION", '"captions": ["a"]').replace("CLIP", '"clips": [ONE]')
    full = full.replace("ONE", '{"path": "a.wav", "duration": 2}')
    rows = write(tmp_path / "m.jsonl", to_json(ROW), "", full, to_json(ROW))
    assert rows[0] == ROW and rows[2] == ROW
    with pytest.raises(RowError, match=rf"m\.jsonl:3: .*{BAD[line]}"):
        rows[1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[\n{"id": 1}\n]', "m.jsonl is a JSON list, rows stand one a line"),
        (b'[{"id": 1}]', "m.jsonl is a JSON list"),
        (b"\x1f\x8b\x08rest", "m.jsonl is compressed"),
        (b"<!DOCTYPE html><html>", "m.jsonl is a web page"),
        ('{"id": 1}\n'.encode("utf-16"), "m.jsonl is UTF-16: save it as UTF-8"),
        ('{"id": 1}\n'.encode("utf-16-be"), "m.jsonl looks like UTF-16 without its mark"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_file_of_something_else_is_told_of_once(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(ForeignError, match=says):
        Manifest(tmp_path / "m.jsonl")


def test_a_row_that_is_a_list_ends_nothing(tmp_path: Path) -> None:
    rows = write(tmp_path / "m.jsonl", "[]", to_json(ROW))
    assert rows[1] == ROW
    with pytest.raises(RowError, match=r":1: expected a JSON object"):
        rows[0]


def test_spans_may_be_rounded(tmp_path: Path) -> None:
    span = Span(start=0, end=10, captions=("b",))
    row = Row(id="1", clips=(Clip(path="a.wav", duration=9.98),), spans=(span,))
    assert write(tmp_path / "m.jsonl", to_json(row))[0] == row


def test_json_leaves_defaults_out() -> None:
    line = json.loads(to_json(Row(id="a", captions=("x",))))
    assert line == {"id": "a", "clips": [], "captions": ["x"]}
    assert parse_row(line, "here").captions == ("x",)


def test_half_of_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    """No file and no tokenizer takes it; a whole pair is a letter."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "captions": ["\\ud83d\\ude00"]}\n{"id": "b", "captions": ["\\ud83d rain"]}\n')
    rows = Manifest(path)
    assert rows[0].captions == ("\U0001f600",)
    with pytest.raises(RowError, match=r"a\.jsonl:2: half of a surrogate pair"):
        _ = rows[1]


def test_each_row_is_given_or_what_is_wrong_with_its_line(tmp_path: Path) -> None:
    good = to_json(Row(id="a", captions=("x",)))
    (tmp_path / "r.jsonl").write_text(f"{{\n\n{good}\n[\n\n\n{good}\n{{\n")
    manifest = Manifest(tmp_path / "r.jsonl")
    found = [line.line if isinstance(line, BadLine) else line.id for line in manifest.each()]
    assert found == [1, "a", 4, "a", 8] == [getattr(line, "line", "a") for line in manifest.each()]
    with pytest.raises(RowError, match=rf"^{tmp_path}/r.jsonl:1: its JSON ends too early"):
        manifest[0]
    with pytest.raises(BadLine) as error:
        manifest[4]
    copied = pickle.loads(pickle.dumps(error.value))
    assert (str(copied), copied.line) == (str(error.value), 8)
