"""Evaluation of a CLAP: each number against a case worked by hand."""

from dataclasses import replace

import pytest
import torch

from megatron_af.data.rows import Clip, Row
from megatron_af.evaluate import clap
from megatron_af.evaluate.clap import (
    composition,
    evaluate_clap,
    meanings,
    paraphrase_robustness,
    place_of_truth,
    places_of_truth,
    recalls,
    retrieval,
    table,
    zero_shot,
)
from tests.evaluate.stub import Stub


def test_retrieval_by_hand():
    audio = torch.eye(12)
    text = torch.eye(12)
    text[0] = torch.zeros(12).index_fill(0, torch.arange(1, 4), 0.5)  # three other clips are nearer to text 0
    scores = retrieval(audio, text)
    assert scores["text_to_audio_r1"] == pytest.approx(100 * 11 / 12)
    assert scores["text_to_audio_r5"] == pytest.approx(100 * 11 / 12)  # eight equals count as four ahead
    assert scores["text_to_audio_r10"] == pytest.approx(100.0)
    assert scores["audio_to_text_r1"] < 100


def test_a_constant_model_is_at_chance_and_not_perfect():
    assert (place_of_truth(torch.ones(11, 11)) == 5).all()
    scores = retrieval(torch.ones(11, 1), torch.ones(11, 1))
    assert scores["text_to_audio_r1"] == 0.0
    assert scores["text_to_audio_r10"] == 100.0


def test_rows_that_say_the_same_are_hits_of_each_other():
    audio, text = torch.eye(3)[[0, 0, 1, 0]], torch.eye(3)[[0, 0, 1, 1]]
    meaning = meanings(["A dog", "a  dog", "rain", "rain"])
    assert meaning.tolist() == [0, 0, 1, 1]
    together = retrieval(audio, text, meaning)
    assert together["text_to_audio_r1"] == 100.0
    assert together["audio_to_text_r1"] == 75.0, "a row of rain that sounds like a dog is a miss"
    same = torch.eye(2).repeat_interleave(30, 0)
    assert set(retrieval(same, same, torch.arange(60) // 30).values()) == {100.0}
    assert set(retrieval(same, same).values()) == {0.0}, "29 equals stand beside the right one"
    told_again = [torch.eye(3)[[0]], torch.zeros(0, 3), torch.eye(3)[[1]], torch.zeros(0, 3)]
    assert paraphrase_robustness(audio, text, told_again, meaning)["paraphrased_r1"] == 100.0


def test_every_caption_asks_and_any_of_a_recordings_is_its_hit(monkeypatch: pytest.MonkeyPatch):
    seeded = torch.Generator().manual_seed(4)
    audio, text = torch.randn(9, 5, generator=seeded), torch.randn(25, 5, generator=seeded)
    owner = torch.arange(25) % 9
    meaning = torch.arange(25)
    meaning[20] = meaning[3] = 1  # the same is said of recordings 1, 2 and 3
    text[20], text[3] = text[1], text[1]
    similarity = text @ audio.t()
    has = torch.zeros(25, 9, dtype=torch.bool)
    for t in range(25):
        for other in range(25):
            has[t, owner[other]] |= bool(meaning[t] == meaning[other])
    of_text = [sum(bool(similarity[t, n] > similarity[t][has[t]].max()) and not has[t, n] for n in range(9))
               for t in range(25)]  # fmt: skip
    apart = [t for t in range(25) if t not in (20, 3)]  # a text that several share is one candidate
    of_audio = []
    for n in range(9):
        best = max(float(similarity[t, n]) for t in apart if has[t, n])
        of_audio.append(sum(float(similarity[t, n]) > best for t in apart if not has[t, n]))
    for queries in (1024, 4):
        monkeypatch.setattr(clap, "QUERIES", queries)
        places = places_of_truth(audio, text, owner, meaning)
        assert places["text_to_audio"].tolist() == of_text and places["audio_to_text"].tolist() == of_audio
    assert sum(of_text) > 0 and sum(of_audio) > 0
    single = places_of_truth(audio, text[:9], torch.arange(9), meaning[:9])
    assert recalls(single) == retrieval(audio, text[:9], meaning[:9])


def test_composition_counts_rows_whose_caption_beats_all_its_negatives():
    audio = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    captions = torch.tensor([[1.0, 0.0], [0.1, 0.9], [0.5, 0.5]])
    negatives = [torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([[0.0, 0.95]]), torch.zeros(0, 2)]
    kinds = [("order", "attribute"), ("order",), ()]
    assert composition(audio, captions, negatives, kinds) == {"all": 50.0, "attribute": 100.0, "order": 50.0}


def test_paraphrases_are_measured_against_their_originals():
    audio, captions = torch.eye(3), torch.eye(3)
    told_again = [torch.eye(3)[[0, 1]], torch.zeros(0, 3), torch.eye(3)[[2, 2]]]  # one of four is another's
    scores = paraphrase_robustness(audio, captions, told_again)
    assert (scores["original_r1"], scores["paraphrased_r1"], scores["kept_r1"]) == (100.0, 75.0, 75.0)
    assert scores["kept_r10"] == 100.0


def test_zero_shot_averages_over_classes_too():
    audio = torch.eye(2)[[0, 0, 0, 1]]
    assert zero_shot(audio, torch.eye(2), torch.tensor([0, 0, 0, 0])) == {"accuracy": 75.0, "mean_class_accuracy": 75.0}
    unequal = zero_shot(audio, torch.eye(2)[[0, 0]], torch.tensor([0, 0, 0, 1]))
    assert unequal == {"accuracy": 75.0, "mean_class_accuracy": 50.0}


def test_report_has_what_the_rows_allow():
    rows = [
        Row(
            id=word,
            clips=(Clip(path=word, duration=1.0),),
            captions=(f"a {word}", f"the {word}"),
            negatives=(f"not a {word}",),
            meta={"class": word, "negative_kinds": ["negation"]},
        )
        for word in ("dog", "rain", "bell")
    ]
    report = evaluate_clap(Stub(), rows)
    assert report["retrieval"]["text_to_audio_r1"] == report["zero_shot"]["accuracy"] == 100.0
    assert report["composition"] == {"all": 100.0, "negation": 100.0}
    assert report["composition, other audio"] == {"all": 0.0, "negation": 0.0}  # no text fits another's audio
    assert report["paraphrase"]["kept_r1"] == report["all captions"]["text_to_audio_r1"] == 100.0
    assert report["intervals"]["all captions/text_to_audio_r1"] == [100.0, 100.0]
    assert table(report).row_count > 10
    assert report["intervals"]["retrieval/audio_to_text_r10"] == report["intervals"]["zero_shot/accuracy"] == [100, 100]
    wrong = [replace(rows[0], clips=(Clip(path="rain", duration=1.0),)), *rows[1:], *rows[1:]]
    low, high = evaluate_clap(Stub(), wrong)["intervals"]["zero_shot/accuracy"]
    assert 0 < low < 80 < high == 100, "one of five is wrong"
    twice = [*rows, replace(rows[-1], id="again", captions=("the bell",), negatives=("not a bell",))]
    twice[-1] = replace(twice[-1], meta=rows[-1].meta)
    other = evaluate_clap(Stub(), twice)["composition, other audio"]
    assert other["all"] == 0.0, "a recording of two rows is not its own other one"
    plain = evaluate_clap(Stub(), [Row(id="1", clips=rows[0].clips, captions=("a dog",))])
    assert set(plain) == {"rows", "retrieval", "intervals"}
    with pytest.raises(ValueError, match="row 2: an evaluation of a CLAP needs a clip, and a caption or labels"):
        evaluate_clap(Stub(), [Row(id="2", captions=("a dog",))])
    with pytest.raises(ValueError, match=r"row dog: .* in each of its 2 negatives, got \['negation'\]"):
        evaluate_clap(Stub(), [replace(rows[0], negatives=("not a dog", "no dog"))])


def test_several_labels_a_recording_are_ranked_and_not_retrieved():
    def labelled(name: str, *labels: str) -> Row:
        return Row(id=name, clips=(Clip(path=name, duration=1.0),), meta={"labels": list(labels)})

    heard = [labelled("dog rain", "dog", "rain"), labelled("bell", "bell"), labelled("rain", "rain")]
    assert evaluate_clap(Stub(), heard) == {
        "rows": 3,
        "zero_shot": {"mean_average_precision": 100.0},
        "intervals": {"zero_shot/mean_average_precision": [100.0, 100.0]},
    }
    wrong = [*heard[:2], labelled("rain", "dog", "bell")]
    # "dog": first and last of three, for nothing of it is heard; "bell": the same; "rain": second.
    expected = 100 * ((1 + 2 / 3) / 2 + (1 + 2 / 3) / 2 + 1 / 2) / 3
    assert evaluate_clap(Stub(), wrong)["zero_shot"]["mean_average_precision"] == pytest.approx(expected)
    assert "zero_shot" not in evaluate_clap(Stub(), [*heard, Row(id="1", clips=heard[0].clips, captions=("a dog",))])
