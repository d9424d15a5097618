"""The thresholds keep the right answers that they promise to keep, and are of the weights that they were found for."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_af.foreign import ForeignError
from megatron_af.runs import calibration as module
from megatron_af.runs.calibration import calibrate, calibration_error, read_calibration
from tests.examples import run_example

PLANE = np.stack([np.cos(angles := np.radians([0, 1, 3, 6, 10])), np.sin(angles)], axis=1).astype(np.float32)
"""Five recordings; the nearest to each lies 1, 1, 2, 3 and 4 degrees from it."""


@pytest.mark.parametrize(("n", "dropped"), [(1, 0), (39, 0), (40, 1), (79, 1), (80, 2), (400, 10)])
def test_half_of_what_need_not_be_kept_is_unlikely(n: int, dropped: int) -> None:
    right = [(i + 1) / (n + 1) for i in range(n)]
    wrong = [0.001, 0.999] * n
    found = calibrate("development", "w", [*wrong, *right], [False] * len(wrong) + [True] * n, PLANE)
    assert found is not None and found.n == 3 * n and found.right == pytest.approx(100 / 3, abs=0.05)
    assert sum(confidence < found.least_confidence for confidence in right) == dropped
    assert min(right) <= found.least_confidence <= max(right), "one of theirs, whatever wrong ones there are"


def test_half_of_what_need_not_be_kept_is_unlike_the_others(tmp_path: Path) -> None:
    found = calibrate("development", "w", [0.9], [True], PLANE)
    assert found is not None and found.least_likeness == pytest.approx(np.cos(np.radians(4)), abs=1e-6)
    found.write(tmp_path)
    kept = read_calibration(tmp_path, "w")
    assert kept is not None
    for degrees, known in ((-3.5, True), (-4.5, False), (13.5, True), (14.5, False), (180, False)):
        angle = np.radians(degrees)
        assert kept.knows(np.array([np.cos(angle), np.sin(angle)], np.float32)) is known


def test_what_says_nothing() -> None:
    assert calibrate("development", "w", [0.9, 0.1], [False, False], PLANE) is None, "nothing is right"
    assert calibrate("development", "w", [], [], PLANE[:0]) is None
    assert calibrate("development", "w", [0.9], [True], PLANE[:1]) is None, "one recording has no other one"


def test_the_calibration_error_by_hand() -> None:
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([1.0, 1.0], [True, False]) == 50
    # 0.62 and 0.68 lie in one bin, where 1 of 2 is right; 0.1 begins the second bin.
    assert calibration_error([0.62, 0.68, 0.1, 0.0], [True, False, False, True]) == pytest.approx(
        100 * (abs(1.3 - 1) + 0.1 + 1.0) / 4
    )
    assert calibration_error([], []) == 0


def test_it_is_of_its_weights(tmp_path: Path) -> None:
    found = calibrate("development", "sha256:a", [0.9, 0.8], [True, True], PLANE)
    assert found is not None and read_calibration(tmp_path, "sha256:a") is None
    assert all(file.is_file() for file in found.write(tmp_path))
    assert read_calibration(tmp_path, "sha256:a") == found
    assert read_calibration(tmp_path, "sha256:b") is None


@pytest.mark.parametrize("broken", ["older", "no vectors", "cut vectors", "not a table"])
def test_what_is_no_calibration_is_named_with_what_to_do(tmp_path: Path, broken: str) -> None:
    found = calibrate("development", "w", [0.9, 0.8], [True, True], PLANE)
    assert found is not None
    told, vectors = found.write(tmp_path)
    if broken == "older":
        told.write_text(json.dumps({k: v for k, v in json.loads(told.read_text()).items() if k != "least_likeness"}))
    elif broken == "not a table":
        told.write_text("[]")
    elif broken == "no vectors":
        vectors.unlink()
    else:
        vectors.write_bytes(vectors.read_bytes()[:-3])
    with pytest.raises(ForeignError, match=r"calibration\.json.*remove both, and measure the stage again"):
        read_calibration(tmp_path, "w")


def test_the_example_runs(tmp_path: Path) -> None:
    class config:
        stage_folder = staticmethod(lambda stage: tmp_path)

    given = {"weights": "sha256:a", "confidences": [0.9], "right": [True], "vectors": PLANE}
    names = run_example(module, config=config, **given)
    assert names["calibration"] == read_calibration(tmp_path, "sha256:a")
