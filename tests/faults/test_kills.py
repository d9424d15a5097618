"""The short form of ``make faults``: a kill of each kind, one at the start, and a resume in another layout."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kills import VICTIMS, Broken, check_same, run


@pytest.mark.parametrize(
    ("loss", "grad_norm", "near"),
    [(0.07 + 9e-7, 2.0, True), (0.07 + 2e-6, 2.0, False), (0.07, 2.00001, True), (0.07, 2.00003, False)],
)
def test_a_step_is_the_same_within_what_its_numbers_are_rounded_to(loss: float, grad_norm: float, near: bool) -> None:
    def records(loss: float, grad_norm: float, sample: str = "a") -> list[dict[str, Any]]:
        return [{"step": 1, "data_rank": 0, "samples": [sample], "loss": loss, "grad_norm": grad_norm}]

    right = records(0.07, 2.0)
    with nullcontext() if near else pytest.raises(Broken, match="of the run that was not killed"):
        check_same(1, records(loss, grad_norm), right, 1e-6)
    with pytest.raises(Broken, match="saw"):
        check_same(1, records(0.07, 2.0, "b"), right, 1e-6)
    if loss != 0.07:
        with pytest.raises(Broken, match="loss"):
            check_same(1, records(loss, grad_norm), right, 0.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_is_the_run_that_was_not_killed(tmp_path: Path) -> None:
    figures = run(tmp_path, len(VICTIMS) + 1, seed=1, elsewhere_every=len(VICTIMS), tell=print, cold=True)
    assert set(figures["victims"]) == set(VICTIMS) and figures["at the start"] == 1
    assert figures["resumed in another layout"] == 1
