"""The short form of ``make faults``: one kill of each kind, and one resume in another layout."""

from pathlib import Path

import pytest

from tests.faults.kills import VICTIMS, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_killed_run_is_the_run_that_was_not_killed(tmp_path: Path) -> None:
    figures = run(tmp_path, len(VICTIMS), seed=1, elsewhere_every=len(VICTIMS), tell=print, cold=True)
    assert figures["victims"] == dict.fromkeys(VICTIMS, 1) and figures["resumed in another layout"] == 1
