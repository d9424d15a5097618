"""Labels by the similarity of texts."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_af.evaluate.answered import Said
from megatron_af.evaluate.metrics import sentences
from megatron_af.evaluate.metrics.base import Means
from megatron_af.evaluate.metrics.nearest import ApproximateF1, MeanAveragePrecision, Nearest

PLANES = ("dog", "rain", "bell")


def embed(texts: Sequence[str]) -> Tensor:
    """A text says how much of each plane it has: "dog dog rain"."""
    counts = torch.tensor([[float(text.count(plane)) for plane in PLANES] for text in texts])
    return torch.nn.functional.normalize(counts + 1e-3, dim=-1)


def said(heard: str, *wanted: str, options: tuple[str, ...] = PLANES) -> Said:
    return Said(id="1", prompt="?", references=(wanted[0],), labels=wanted, options=options, heard=heard)


def test_an_answer_goes_to_the_nearest_of_its_own_options() -> None:
    asked = [
        said("dogs and a dog in rain", "dog"),
        said("rain on bells, rain", "bell"),
        said("rain on bells, rain", "bell", options=("dog", "bell")),
        said("", "dog"),
        said("dog", "dog", options=()),
    ]
    assert Nearest(Means(embed=embed)).score(asked)["nearest"].each == [1.0, 0.0, 1.0, None, None]
    assert "retrieval.stage names no trained contrastive stage" in Nearest(Means()).missing()
    assert Nearest(Means(embed=embed)).missing() == ""


def test_average_precision_ranks_recordings_for_each_label() -> None:
    asked = [said("dog", "dog"), said("rain", "rain", "dog"), said("dog dog rain", "rain")]
    scores = MeanAveragePrecision(Means(embed=embed)).score(asked)["mean_average_precision"]
    # dog: ranked 1st (right), 3rd, and by "rain" last (right): (1 + 2/3) / 2; rain: 1st and 2nd, both right: 1.
    assert scores.value == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)
    assert scores.interval is not None and scores.interval[0] < scores.value <= scores.interval[1]


def test_like_labels_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "sentence_vectors", lambda model, texts: embed(texts))
    metric = ApproximateF1(Means(sentences="x"))
    both = ("dog", "bell")
    asked = [said("dogs, rain", *both), said("a bell and dog", *both), said("", "dog"), said("rain", "dog")]
    assert metric.score(asked)["f1_approx"].each == [0.5, 1.0, 0.0, 0.0]
    assert "evaluation.sentence_model is empty" in ApproximateF1(Means()).missing()
    assert Path(sentences.__file__).is_file()


def test_a_benchmark_whose_questions_have_options_of_their_own_fits_into_memory() -> None:
    """A similarity of each answer to each option of all others would be 80,000 x 160,000 numbers: 51 GB."""
    asked = [said(f"dog {n}", f"dog {n}", options=(f"dog {n}", f"rain {n}")) for n in range(80_000)]
    tracked = []

    def few(texts: Sequence[str]) -> Tensor:
        tracked.append(len(texts))
        assert len(tracked) < 3
        return torch.tensor([[1.0, 0.0] if text.startswith("dog") else [0.0, 1.0] for text in texts])

    assert Nearest(Means(embed=few)).score(asked)["nearest"].value == 100.0 and tracked == [80_000, 160_000]


def test_an_answer_that_lists_all_labels_gets_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of AudioSet and FSD50K hold commas and "and"; a BERT that tells all texts apart."""
    monkeypatch.setattr(sentences, "sentence_vectors", lambda model, texts: torch.eye(len(texts)))
    labels = ("Male speech, man speaking", "Chewing and mastication", "Rain")
    metric = ApproximateF1(Means(sentences="x"))
    heard = (", ".join(labels), "male speech, man speaking, chewing and mastication and rain.", "rain and male speech")
    each = metric.score([said(text, *labels, options=labels) for text in heard])["f1_approx"].each
    assert each[:2] == [1.0, 1.0] and each[2] == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
