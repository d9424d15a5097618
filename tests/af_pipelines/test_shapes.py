"""What came is what is relied on, or is told of by its place."""

from datetime import UTC, datetime
from typing import Any

import pytest

from af_pipelines.shapes import BEGINNING, JOB, ShapeError, checked, moment, number

NAMED: dict[str, Any] = {"metadata": {"name": "j"}}


def test_nulls_are_nothing_and_what_is_not_named_stays() -> None:
    spec = {"trainer": {"numNodes": 2, "image": "i"}}
    job = NAMED | {"status": {"conditions": None, "jobsStatus": [1]}, "spec": spec}
    assert checked(job, JOB) == NAMED | {"status": {"jobsStatus": [1]}, "spec": spec}


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ([], "the answer: expected an object, got a list"),
        ({}, "metadata: expected an object, got nothing"),
        ({"metadata": {"name": 3}}, "metadata.name: expected text, got a whole number"),
        ({"metadata": {"name": "j", "labels": {"a": 1}}}, "metadata.labels.a: expected text, got a whole number"),
        (NAMED | {"status": {"conditions": [{}]}}, "status.conditions[0].type: expected text, got nothing"),
        (NAMED | {"spec": {"trainer": {"numNodes": ""}}}, "spec.trainer.numNodes: expected a whole number, got text"),
    ],
)
def test_another_shape_is_told_by_its_place(job: Any, told: str) -> None:
    with pytest.raises(ShapeError) as refused:
        checked(job, JOB)
    assert str(refused.value) == told


def test_times_and_numbers_that_are_none() -> None:
    known = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert moment("2026-01-02T03:04:05.6Z") == moment("2026-01-02T03:04:05") == moment(known) == known
    assert moment(None) == moment("yesterday") == moment("") == BEGINNING
    assert number("12") == 12
    assert number(None) == number("x") == number("-1") == number("²") == number("9" * 5000) == 0
