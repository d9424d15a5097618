"""CLAP similarity as a filter of rows and as a ranking of candidates."""

import pytest

from megatron_af.data.rows import Clip, Question, Row
from megatron_af.evaluate.clap_filter import filter_rows, rank, text_of
from tests.evaluate.test_clap import Stub


def row(name: str, sound: str, caption: str = "", answers: tuple[str, ...] = ()) -> Row:
    return Row(
        id=name,
        clips=(Clip(path=sound, duration=1.0),) if sound else (),
        captions=(caption,) if caption else (),
        questions=tuple(Question(prompt="?", output=answer) for answer in answers),
    )


def test_rows_are_kept_by_the_fit_of_text_and_audio():
    rows = [
        row("fits", "dog", "a dog"),
        row("half", "dog", "a dog and rain"),
        row("wrong", "dog", "rain"),
        row("dialogue", "bell", answers=("a bell", "the bell again")),
        row("text only", "", "a dog"),
    ]
    kept, report = filter_rows(Stub(), rows, least=0.6)
    assert [r.id for r in kept] == ["fits", "half", "dialogue"]
    assert [r.meta["clap_similarity"] for r in kept] == pytest.approx([1.0, 0.7071, 1.0])
    assert report["dropped"] == {"less similar": 1, "no audio or no text": 1}
    assert report["similarity_deciles"][0] == 0.0
    assert filter_rows(Stub(), [], least=0.5)[1]["kept"] == 0


def test_text_of_a_dialogue_is_all_it_answers():
    assert text_of(row("d", "bell", answers=("a bell", "loud"))) == "a bell loud"
    assert text_of(row("c", "bell", "a caption", ("an answer",))) == "a caption"


def test_candidates_are_ranked_for_each_row():
    ranked = rank(Stub(), [row("1", "dog"), row("2", "rain")], [["rain", "dog", "dog rain"], ["dog", "rain"]])
    assert [[text for _, text in texts] for texts in ranked] == [["dog", "dog rain", "rain"], ["rain", "dog"]]
    assert ranked[0][0][0] == pytest.approx(1.0)
