"""Two results of one machine side by side; anything else is refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_af.bench import compare
from megatron_af.config import ConfigError
from megatron_af.progress import silent

MACHINE = {"processor": "EPYC", "cores": 2}


def result(folder: Path, name: str, **changes: Any) -> str:
    rows = [{"way": "packed", "width": 512, "milliseconds": 50.0, "spread": [40.0, 60.0]}]
    record = {"subject": "step", "commit": "abc", "machine": MACHINE, "device": "", "rows": rows} | changes
    (folder / name).write_text(json.dumps(record))
    return str(folder / name)


def test_every_number_of_both_is_named_by_what_it_is_of(tmp_path: Path) -> None:
    faster = [{"way": "packed", "width": 512, "milliseconds": 25.0, "spread": [0.0, 60.0], "new": 1}]
    files = result(tmp_path, "a"), result(tmp_path, "b", rows=faster, commit="def")
    found = compare.measure(tmp_path, silent(), files=files)
    ratios = {row["name"]: row["ratio"] for row in found["numbers"]}
    assert ratios == {
        "rows, packed width 512, width": 1.0,
        "rows, packed width 512, milliseconds": 0.5,
        "rows, packed width 512, spread, 0": 0.0,
        "rows, packed width 512, spread, 1": 1.0,
    }
    (table,) = compare.tables(found)
    assert table.row_count == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"machine": MACHINE | {"cores": 64}}, "are of different machines"),
        ({"device": "NVIDIA H100"}, "are of different devices"),
        ({"subject": "data"}, "are of different subjects"),
    ],
)
def test_numbers_that_say_nothing_about_each_other_are_refused(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    files = result(tmp_path, "a"), result(tmp_path, "b", **changes)
    with pytest.raises(ConfigError, match=expected):
        compare.measure(tmp_path, silent(), files=files)


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("[1]")
    for files, expected in (
        ((), "expected two files written with --json, got 0"),
        ((result(tmp_path, "a"), str(tmp_path / "none")), "none is no result"),
        ((result(tmp_path, "a"), str(tmp_path / "c")), "names no subject and machine"),
    ):
        with pytest.raises(ConfigError, match=expected):
            compare.measure(tmp_path, silent(), files=files)
