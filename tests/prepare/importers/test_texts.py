"""What is known for a text that nobody wrote so, and what is not."""

from pathlib import Path

import pytest

from megatron_af.config import ImportConfig
from megatron_af.data.rows import Question, Row
from megatron_af.prepare.importers.texts import HTML, LOST, TWICE, odd_texts
from tests.data.toy import write_tone
from tests.prepare.importing import problems, run, table


def kinds(text: str) -> list[str]:
    row = Row(id="a", questions=(Question(prompt="what?", output="x", options=("x", text)),), captions=(text,))
    return [kind for kind, shown in odd_texts(row) if shown == text]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("cats &amp; dogs", HTML),
        ("it&#39;s rain", HTML),
        ("&quot;rain&quot; &#x26; wind", HTML),
        ("rain,<br/>then wind", HTML),
        ('<a href="http://x">rain</a>', HTML),
        ("caf\ufffd", LOST),
        ("caf\u00e9".encode().decode("cp1252"), TWICE),
        ("it\u2019s rain".encode().decode("cp1252"), TWICE),
        ("20 \u00b0C".encode().decode("cp1252"), TWICE),
        ("\u0434\u043e\u043c".encode().decode("cp1252"), TWICE),
    ],
)
def test_odd_texts(text: str, kind: str) -> None:
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "R&B; AT&T; rock & roll",
        "a <b> c",
        "x < b > c",
        "<laughter>",
        "&unknown;",
        "caf\u00e9 \u00e0\u00a0\u00bb",
        "\u201eSpa\u00df\u201c\u2026",
        "\u0434\u043e\u043c",
        "S\u00c3O PAULO",
        "ma\u00f1ana\u2026",
        "C\u00d4T\u00c9",
    ],
)
def test_what_somebody_may_have_written(text: str) -> None:
    assert kinds(text) == []


def test_they_are_imported_and_told_of(tmp_path: Path) -> None:
    for name in "abc":
        write_tone(tmp_path / f"{name}.wav", 0.3, ord(name))
    captions = {"a": "cats &amp; dogs", "b": "rain", "c": "it&#39;s caf\ufffd, Tom &amp; Jerry"}
    table(tmp_path / "t.csv", [{"file": f"{name}.wav", "text": text} for name, text in captions.items()])
    columns = {"audio": "file", "caption": "text", "id": "file"}
    rows, report = run(tmp_path, ImportConfig(format="csv", path="t.csv", columns=columns))
    assert [row.captions for row in rows] == [(text,) for text in captions.values()]
    assert report.notes == {HTML: (2, "a.wav: cats &amp; dogs")} and report.left_out == {}
    assert problems(tmp_path, report) == ["a.wav: cats &amp; dogs", f"c.wav: {captions['c']}"]
