"""What every metric shares: a part of answers in percent, in which what is unparseable counts as wrong."""

from megatron_af.evaluate.metrics.base import percent


def test_unparseable_answers_count_as_wrong_and_stay_apart() -> None:
    scores = percent([1.0, None, 0.0, True], why=3)
    assert (scores.value, scores.each, scores.notes) == (50.0, [1.0, None, 0.0, 1.0], {"why": 3})
    assert percent([]).value == 0.0
