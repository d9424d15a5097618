"""What is listed is not heard, all else is."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from megatron_af.parallel.foreign_warnings import LOGGED, WARNINGS, silence


def test_listed_warnings_are_kept_out_and_others_heard(caplog: pytest.LogCaptureFixture) -> None:
    silence.cache_clear()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        silence()
        for text in (*WARNINGS, "something new"):
            warnings.warn(f"{text} and so on", stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["something new and so on"]
    for logger, text in LOGGED.items():
        for line in (f"{text} and so on", f"{logger} says something new"):
            logging.getLogger(logger).warning(line)
    assert [record.getMessage() for record in caplog.records] == [f"{logger} says something new" for logger in LOGGED]


@pytest.mark.slow
def test_a_start_says_nothing_of_others() -> None:
    """Whichever module is the first to import megatron-core: here one that the report of a run reads."""
    command = [sys.executable, "-c", "import megatron_af.start.run, megatron_af.bench.step"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=True)
    assert done.stderr == ""
