"""How sure a trained stage must be of an answer, found on development rows and kept beside its results.

    calibration = calibrate("development", weights, confidences, right)
    calibration.write(config.stage_folder("answer"))
    read_calibration(config.stage_folder("answer"), weights)         # None: nobody calibrated these weights

The confidence of an answer is its probability as the model finds it, its end included (``inference/writing.py``). It is
calibrated on questions that name all allowed answers: there a wrong answer and a sound of no class look alike.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatron_af.files import write
from megatron_af.foreign import read_json

CALIBRATION = "calibration.json"
KEPT = 0.95
"""Part of the right development answers that is not told to be none."""
BINS = 10


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Of one checkpoint, on one data set."""

    dataset: str
    weights: str
    """Digest of the checkpoint."""
    n: int
    """Questions with options that were asked."""
    right: float
    """Percent of them."""
    least_confidence: float
    """An answer that is less likely than this is worth none; ``KEPT`` of the right ones are not."""
    error: float
    """Expected calibration error in percent (:func:`calibration_error`)."""

    def write(self, folder: Path) -> Path:
        file = folder / CALIBRATION
        write(file, json.dumps(asdict(self), indent=1))
        return file


def read_calibration(folder: Path, weights: str) -> Calibration | None:
    """That of a stage's folder, where it is of these weights."""
    file = folder / CALIBRATION
    found = Calibration(**read_json(file)) if file.is_file() else None
    return found if found is not None and found.weights == weights else None


def calibrate(dataset: str, weights: str, confidences: Sequence[float], right: Sequence[bool]) -> Calibration | None:
    """None where no answer was right: nothing says how sure to be.

    Args:
        confidences, right: of each answer to a question with options.
    """
    kept = sorted(c for c, is_right in zip(confidences, right, strict=True) if is_right)
    if not kept:
        return None
    return Calibration(
        dataset=dataset,
        weights=weights,
        n=len(right),
        right=round(100 * len(kept) / len(right), 1),
        least_confidence=kept[math.floor((1 - KEPT) * len(kept))],
        error=round(calibration_error(confidences, right), 1),
    )


def calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error in percent: how far confidence and accuracy lie apart, in ten bins of confidence, each
    by its share of the answers (Guo et al. 2017, equation 3)."""
    sure_N, right_N = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    bin_N = np.minimum((sure_N * BINS).astype(np.int64), BINS - 1)
    apart = (abs(float((sure_N[own] - right_N[own]).sum())) for own in (bin_N == b for b in range(BINS)))
    return 100 * sum(apart) / max(1, len(sure_N))
