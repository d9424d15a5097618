"""Average precision against its definition written out and scikit-learn's; its interval against resampling by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from megatron_af.evaluate import ranking
from megatron_af.evaluate.ranking import average_precision, mean_average_precision, mean_average_precision_interval


def written_out(truth: list[bool], similarity: list[float]) -> float:
    """The precision at each threshold that a recording with the label sets, equals together."""
    precisions = []
    for right, at in zip(truth, similarity, strict=True):
        if right:
            above = [hit for hit, value in zip(truth, similarity, strict=True) if value >= at]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions)


def fixture() -> tuple[torch.Tensor, torch.Tensor]:
    seeded = torch.Generator().manual_seed(3)
    similarity = torch.randint(0, 12, (40, 6), generator=seeded) / 12  # with equals
    truth = torch.rand(40, 6, generator=seeded) < 0.3
    truth[:, 4] = False  # a label that nothing has
    return truth, similarity


def test_it_is_its_written_out_definition_and_scikit_learns() -> None:
    truth, similarity = fixture()
    columns = [c for c in range(6) if c != 4]
    expected = [written_out(truth[:, c].tolist(), similarity[:, c].tolist()) for c in columns]
    value = mean_average_precision(truth, similarity)
    assert value == pytest.approx(100 * sum(expected) / 5)
    theirs = average_precision_score(truth[:, columns].numpy(), similarity[:, columns].numpy(), average="macro")
    assert value == pytest.approx(100 * theirs)
    assert mean_average_precision(torch.eye(3).bool(), torch.eye(3)) == 100.0
    assert mean_average_precision(torch.eye(4).bool(), torch.ones(4, 4)) == 25.0, "a constant model finds one in four"


def test_a_recording_that_counts_twice_is_there_twice() -> None:
    truth, similarity = (tensor[:, 0].numpy() for tensor in fixture())
    weight = np.random.default_rng(0).integers(0, 3, size=(5, 40)).astype(float)
    found = average_precision(truth, similarity, weight)
    for counts, value in zip(weight, found, strict=True):
        assert value == pytest.approx(average_precision_score(truth, similarity, sample_weight=counts))
    assert np.isnan(average_precision(np.zeros(40, bool), similarity, weight)).all()


def test_the_interval_is_that_of_resampled_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, similarity = fixture()
    low, high = mean_average_precision_interval(truth, similarity)
    assert low < mean_average_precision(truth, similarity) + 10 and low < high
    assert mean_average_precision_interval(truth, similarity) == (low, high)
    monkeypatch.setattr(ranking, "RESAMPLES", 50)
    few = mean_average_precision_interval(truth, similarity)
    draws = np.random.default_rng(0).integers(40, size=(50, 40))
    values = [mean_average_precision(truth[draw], similarity[draw]) for draw in draws]
    assert few == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_resamples_without_any_label_say_nothing() -> None:
    truth, similarity = torch.zeros(5, 1, dtype=torch.bool), torch.tensor([[0.5], [0.9], [0.1], [0.2], [0.3]])
    truth[0] = True
    draws = np.random.default_rng(0).integers(5, size=(ranking.RESAMPLES, 5))
    values = [mean_average_precision(truth[draw], similarity[draw]) for draw in draws if 0 in draw]
    assert len(values) < ranking.RESAMPLES
    expected = tuple(np.percentile(values, [2.5, 97.5]))
    assert mean_average_precision_interval(truth, similarity) == pytest.approx(expected)
