"""Two files of ``tools/bench.py … --json``, number by number.

    python tools/bench.py compare before.json after.json

Only what was measured on one machine compares: files of two are refused.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_af.config import ConfigError
from megatron_af.foreign import read_json
from megatron_af.progress import Progress


def measure(folder: Path, progress: Progress, *, files: Sequence[str] = ()) -> dict[str, Any]:
    """
    Args:
        files: of the same subject.

    Returns:
        ``numbers``: of each number that both files hold, its name, both values, and the second over the first.

    Raises:
        ConfigError: not two files, one that is no result, or results of different subjects or machines.
    """
    if len(files) != 2:
        raise ConfigError(f"tools/bench.py compare: expected two files written with --json, got {len(files)}")
    before, after = (_read(Path(file)) for file in files)
    for key, what in (("subject", "subjects"), ("machine", "machines"), ("device", "devices")):
        if before.get(key) != after.get(key):
            raise ConfigError(
                f"tools/bench.py compare: {files[0]} and {files[1]} are of different {what} ({before.get(key)} and "
                f"{after.get(key)}), whose numbers say nothing about each other; measure both on one"
            )
    found, other = dict(_numbers(before)), dict(_numbers(after))
    return {
        "compared": [f"{file} ({record['commit'][:9]})" for file, record in zip(files, (before, after), strict=True)],
        "numbers": [
            {"name": name, "before": value, "after": other[name], "ratio": other[name] / value if value else None}
            for name, value in found.items()
            if name in other
        ],
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    table = Table("what", *result["compared"], "second / first")
    for row in result["numbers"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(row["name"], f"{row['before']:.4g}", f"{row['after']:.4g}", ratio)
    return [table]


def _read(file: Path) -> dict[str, Any]:
    try:
        record = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tools/bench.py compare: {file} is no result of --json: {error}") from error
    if not isinstance(record, dict) or not {"subject", "machine", "commit"} <= record.keys():
        raise ConfigError(f"tools/bench.py compare: {file} is no result of --json: it names no subject and machine")
    return record


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result; entries of a list are known by the words in them, else by their place."""
    if isinstance(value, bool | str) or value is None:
        return
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("machine", "commit", "subject"):
                yield from _numbers(inner, f"{name}, {key}" if name else key)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            words = [v for v in inner.values() if isinstance(v, str)] if isinstance(inner, dict) else []
            whole = {k: v for k, v in inner.items() if k == "width"} if isinstance(inner, dict) else {}
            known = " ".join([*words, *(f"{key} {number}" for key, number in whole.items())]) or str(place)
            yield from _numbers(inner, f"{name}, {known}" if name else known)
