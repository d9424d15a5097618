"""CLAP similarity as a filter of rows and as a ranking of candidates."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_af.data.rows import Clip, Question, Row, Span
from megatron_af.evaluate.clap_filter import Wanted, filtered, judged, rank, text_of
from tests.evaluate.stub import Stub


def row(name: str, sound: str, caption: str = "", answers: tuple[str, ...] = ()) -> Row:
    return Row(
        id=name,
        clips=(Clip(path=sound, duration=1.0),) if sound else (),
        captions=(caption,) if caption else (),
        questions=tuple(Question(prompt="?", output=answer) for answer in answers),
    )


def filter_rows(rows: list[Row], **wanted: Any) -> tuple[list[Row], dict[str, Any], list[dict[str, Any]]]:
    return filtered(judged(Stub(), rows, Wanted(**wanted)), Wanted(**wanted))


def test_rows_are_kept_by_the_fit_of_text_and_audio():
    rows = [
        row("fits", "dog", "a dog"),
        row("half", "dog", "a dog and rain"),
        row("wrong", "dog", "rain"),
        row("dialogue", "bell", answers=("a bell", "the bell again")),
        row("text only", "", "a dog"),
    ]
    kept, report, dropped = filter_rows(rows, least=0.6)
    assert [r.id for r in kept] == ["fits", "half", "dialogue"]
    assert [r.meta["clap_similarity"] for r in kept] == pytest.approx([1.0, 0.7071, 1.0])
    assert report["dropped"] == {"less similar": 1, "no audio or no text": 1}
    assert {entry["id"]: entry["reason"] for entry in dropped} == {
        "wrong": "less similar",
        "text only": "no audio or no text",
    }
    assert report["similarity_deciles"][0] == 0.0
    assert filter_rows([], least=0.5, most_alike=0.5, most_alike_text=0.5, draw=1)[1]["kept"] == 0


def test_of_rows_that_are_nearly_the_same_one_is_kept():
    rows = [
        row("first", "dog", "a dog"),
        row("again", "dog", "a dog, again"),
        row("same sound", "dog dog", "a bell"),
        row("labels", "rain"),
        row("other", "bell rain", "a bell"),
        row("same text", "bell", "the bell"),
    ]
    rows[3] = replace(rows[3], spans=(Span(start=0, end=1, captions=("rain",)),))
    kept, report, dropped = filter_rows(rows, most_alike=0.9)
    assert [r.id for r in kept] == ["first", "again", "labels", "other", "same text"], "labels alone are enough"
    assert "clap_similarity" not in kept[0].meta
    assert dropped == [{"id": "same sound", "reason": "sounds like another", "like": "first", "similarity": 1.0}]
    assert report["dropped"] == {"sounds like another": 1} and report["sound_deciles"][0] == 0.0
    kept, report, dropped = filter_rows(rows, most_alike=0.9, most_alike_text=0.9)
    assert [r.id for r in kept] == ["first", "labels", "other"]
    assert [(d["id"], d["like"]) for d in dropped] == [
        ("same sound", "first"),
        ("again", "first"),
        ("same text", "other"),
    ]
    assert len(report["text_deciles"]) == 11


def test_what_is_drawn_is_of_every_kind():
    words = ["dog"] * 40 + ["rain"] * 6 + ["bell"] * 3
    rows = [row(f"{n}", word, f"a {word}") for n, word in enumerate(words)]
    kept, report, dropped = filter_rows(rows, draw=9)
    assert len(kept) == 9 and report["dropped"] == {"not drawn": 40} and len(dropped) == 40
    assert {word: sum(r.clips[0].path == word for r in kept) for word in ("dog", "rain", "bell")} == {
        "dog": 3,
        "rain": 3,
        "bell": 3,
    }
    assert sum(cluster["drawn"] for cluster in report["clusters"]) == 9


def test_text_of_a_dialogue_is_all_it_answers():
    assert text_of(row("d", "bell", answers=("a bell", "loud"))) == "a bell loud"
    assert text_of(row("c", "bell", "a caption", ("an answer",))) == "a caption"


def test_candidates_are_ranked_for_each_row():
    ranked = rank(Stub(), [row("1", "dog"), row("2", "rain")], [["rain", "dog", "dog rain"], ["dog", "rain"]])
    assert [[text for _, text in texts] for texts in ranked] == [["dog", "dog rain", "rain"], ["rain", "dog"]]
    assert ranked[0][0][0] == pytest.approx(1.0)
