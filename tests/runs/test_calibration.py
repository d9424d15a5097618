"""The threshold keeps the right answers that it promises to keep, and is of the weights that it was found for."""

from pathlib import Path

import pytest

from megatron_af.runs import calibration as module
from megatron_af.runs.calibration import calibrate, calibration_error, read_calibration
from tests.examples import run_example


@pytest.mark.parametrize(("n", "dropped"), [(1, 0), (19, 0), (20, 1), (39, 1), (40, 2), (200, 10)])
def test_95_of_100_right_answers_are_kept(n: int, dropped: int) -> None:
    right = [(i + 1) / (n + 1) for i in range(n)]
    wrong = [0.001, 0.999] * n
    found = calibrate("development", "w", [*wrong, *right], [False] * len(wrong) + [True] * n)
    assert found is not None and found.n == 3 * n and found.right == pytest.approx(100 / 3, abs=0.05)
    assert sum(confidence < found.least_confidence for confidence in right) == dropped
    assert min(right) <= found.least_confidence <= max(right), "one of theirs, whatever wrong ones there are"


def test_nothing_right_says_nothing() -> None:
    assert calibrate("development", "w", [0.9, 0.1], [False, False]) is None
    assert calibrate("development", "w", [], []) is None


def test_the_calibration_error_by_hand() -> None:
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([1.0, 1.0], [True, False]) == 50
    # 0.62 and 0.68 lie in one bin, where 1 of 2 is right; 0.1 begins the second bin.
    assert calibration_error([0.62, 0.68, 0.1, 0.0], [True, False, False, True]) == pytest.approx(
        100 * (abs(1.3 - 1) + 0.1 + 1.0) / 4
    )
    assert calibration_error([], []) == 0


def test_it_is_of_its_weights(tmp_path: Path) -> None:
    found = calibrate("development", "sha256:a", [0.9, 0.8], [True, True])
    assert found is not None and read_calibration(tmp_path, "sha256:a") is None
    found.write(tmp_path)
    assert read_calibration(tmp_path, "sha256:a") == found
    assert read_calibration(tmp_path, "sha256:b") is None


def test_the_example_runs(tmp_path: Path) -> None:
    class config:
        stage_folder = staticmethod(lambda stage: tmp_path)

    names = run_example(module, config=config, weights="sha256:a", confidences=[0.9], right=[True])
    assert names["calibration"] == read_calibration(tmp_path, "sha256:a")
