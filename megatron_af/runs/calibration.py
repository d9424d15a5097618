"""How sure a trained stage must be of an answer, found on development rows and kept beside its results.

    calibration = calibrate("development", weights, confidences, right, vectors)
    calibration.write(config.stage_folder("answer"))
    read_calibration(config.stage_folder("answer"), weights)         # None: nobody calibrated these weights

An answer is worth none where the model finds it unlikely (its confidence is its probability, its end included), and
where the recording is like none that the model was calibrated on. Confidence alone tells wrong answers from right ones,
but hardly a sound of no class from the others: of those the model is often sure. How much alike two recordings are is
the cosine of what the encoder makes of them, the mean over time, and what counts is the nearest development recording
(Sun et al. 2022, deep nearest neighbours).

N development recordings, D width of the encoder's features.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_af.files import write
from megatron_af.foreign import ForeignError, file_at, read_json

CALIBRATION, VECTORS = "calibration.json", "calibration.npy"
KEPT = 0.95
"""Part of the right development answers that is not told to be none; each of the two thresholds takes half of the
rest."""
BINS = 10

type Vectors = NDArray[np.float32]


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
    error: float
    """Expected calibration error in percent (:func:`calibration_error`)."""
    least_confidence: float
    """An answer that is less likely than this is worth none."""
    least_likeness: float
    """So is one about a recording whose nearest development recording is less like it than this, -1 to 1."""
    vectors_ND: Vectors = field(compare=False, repr=False)
    """Unit vectors of the development recordings."""

    def knows(self, vector_D: Vectors) -> bool:
        """Whether a recording, as a unit vector, is like one of the development recordings."""
        return bool((self.vectors_ND @ vector_D).max() >= self.least_likeness)

    def write(self, folder: Path) -> list[Path]:
        """The files that it lies in."""
        told = asdict(self)
        del told["vectors_ND"]
        array = io.BytesIO()
        np.lib.format.write_array(array, self.vectors_ND.astype(np.float16), allow_pickle=False)
        write(folder / VECTORS, array.getvalue())
        write(folder / CALIBRATION, json.dumps(told, indent=1))
        return [folder / CALIBRATION, folder / VECTORS]


def read_calibration(folder: Path, weights: str) -> Calibration | None:
    """That of a stage's folder, where it is of these weights.

    Raises:
        ForeignError: the files are damaged, do not belong together, or are those of another version.
    """
    if not (folder / CALIBRATION).is_file():
        return None
    told: dict[str, Any] = read_json(folder / CALIBRATION)
    try:
        if told["weights"] != weights:
            return None
        return Calibration(**told, vectors_ND=np.load(file_at(folder / VECTORS), allow_pickle=False).astype(np.float32))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ForeignError(
            f"{folder / CALIBRATION} and {VECTORS} beside it are no calibration of this version ({error}): "
            "remove both, and measure the stage again (tools/evaluate.py)"
        ) from error


def calibrate(
    dataset: str, weights: str, confidences: Sequence[float], right: Sequence[bool], vectors_ND: Vectors
) -> Calibration | None:
    """None where no answer was right, or all are about one recording: nothing says how sure to be.

    Args:
        confidences, right: of each answer to a question with options.
        vectors_ND: unit vectors of the recordings that were asked about, one each.
    """
    kept = [confidence for confidence, is_right in zip(confidences, right, strict=True) if is_right]
    if not kept or len(vectors_ND) < 2:
        return None
    alike_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(alike_NN, -np.inf)
    return Calibration(
        dataset=dataset,
        weights=weights,
        n=len(right),
        right=round(100 * len(kept) / len(right), 1),
        error=round(calibration_error(confidences, right), 1),
        least_confidence=_kept(kept),
        least_likeness=_kept(alike_NN.max(1).tolist()),
        vectors_ND=vectors_ND,
    )


def _kept(values: Sequence[float]) -> float:
    """The lowest but for half of what need not be kept."""
    return sorted(values)[math.floor(round((1 - KEPT) / 2 * len(values), 6))]


def calibration_error(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error in percent: how far confidence and accuracy lie apart, in ten bins of confidence, each
    by its share of the answers (Guo et al. 2017, equation 3)."""
    sure_N, right_N = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    bin_N = np.minimum((sure_N * BINS).astype(np.int64), BINS - 1)
    apart = (abs(float((sure_N[own] - right_N[own]).sum())) for own in (bin_N == b for b in range(BINS)))
    return 100 * sum(apart) / max(1, len(sure_N))
