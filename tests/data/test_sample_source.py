"""From a draw to a sample: what an objective refuses gives way to the same other row, is reported once, and counted."""

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import Config, StageConfig
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Row, RowError
from megatron_af.data.sample_source import ATTEMPTS, GRACE, SampleSource, TooManyReplacements
from megatron_af.data.sampler import Draw
from tests.data.toy import CPU, toy_config

STAGE = StageConfig(global_batch_samples=4)


class Ids:
    """An objective that takes a row's id, and refuses some."""

    def __init__(self, refused: Callable[[str], bool]) -> None:
        self.refused = refused

    def of(self, row: Row, draw: Draw) -> tuple[Row, str]:
        if self.refused(row.id):
            raise RowError(f"row {row.id}: of no use")
        return row, row.id


def source(config: Config, refused: Callable[[str], bool], *, speaks: bool = True) -> SampleSource[Any]:
    loader = ClipLoader(config, max_windows=1, device=CPU)
    texts: Any = Ids(refused)
    report = Path(config.output) / "replaced.jsonl"
    return SampleSource(config, config.curriculum["tune"], texts, loader, report, speaks=speaks)


def lines(config: Config) -> list[dict[str, Any]]:
    file = Path(config.output) / "replaced.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def test_a_sample_is_the_row_and_what_is_said_of_it(tmp_path: Path) -> None:
    config = toy_config(tmp_path, STAGE)
    found = source(config, lambda name: False)
    for step in range(5):
        for slot in range(4):
            sample = found.sample(step, slot)
            assert sample.text == sample.row.id and found.dataset_name(sample.dataset) == sample.row.id[0]
    assert lines(config) == []


def test_a_refused_row_gives_way_to_the_same_other_one_on_every_rank(tmp_path: Path) -> None:
    config = toy_config(tmp_path, STAGE)
    places = [(step, slot) for step in range(6) for slot in range(4)]
    free = source(config, lambda name: False)
    wanted = [free.sample(*place).text for place in places]
    ranks = [source(config, lambda name: name == "a-3", speaks=rank == 0) for rank in range(2)]
    first, second = ([s.sample(*place).text for place in places] for s in ranks)
    assert first == second
    changed = [(old, new) for old, new in zip(wanted, first, strict=True) if old != new]
    assert {old for old, _ in changed} == {"a-3"} and all(new[0] == "a" and new != "a-3" for _, new in changed)
    assert lines(config) == [
        {"step": lines(config)[0]["step"], "dataset": "a", "row": 3, "problem": "row a-3: of no use"}
    ]  # several times drawn, once written, by one rank


def test_a_data_set_of_which_nothing_can_be_used_ends_the_run(tmp_path: Path) -> None:
    config = toy_config(tmp_path, STAGE)
    asked: list[str] = []
    found = source(config, lambda name: asked.append(name) is None)
    why = rf"data set .: {ATTEMPTS} rows in a row cannot be used \(last: row .*: of no use\); .*replaced.jsonl"
    with pytest.raises(TooManyReplacements, match=why):
        found.sample(0, 0)
    assert len(asked) == ATTEMPTS and len({name[0] for name in asked}) == 1


def test_replacements_are_weighed_against_what_was_drawn(tmp_path: Path) -> None:
    config = toy_config(tmp_path, STAGE)
    found = source(config, lambda name: False)
    for number in range(GRACE):
        found.report(0, "a", number, "bad")
    with pytest.raises(TooManyReplacements, match=rf"{GRACE + 1} of 0 samples .*last: b, row x: worse"):
        found.report(0, "b", "x", "worse")
    assert len(lines(config)) == GRACE + 1


@pytest.mark.parametrize(("bad", "stopped"), [(0.04, False), (0.1, True)])
def test_no_rank_stops_a_run_by_chance(tmp_path: Path, bad: float, stopped: bool) -> None:
    """Ranks of a run, each of which counts its own samples; a twentieth may be replaced."""
    config = toy_config(tmp_path, STAGE)
    config = replace(config, data=replace(config.data, max_replaced_fraction=0.05))
    for rank in range(6):
        rng = random.Random(rank)
        found = source(config, lambda name, rng=rng: rng.random() < bad, speaks=False)
        with pytest.raises(TooManyReplacements) if stopped else nullcontext():
            for step in range(200):
                for slot in range(4):
                    found.sample(step, slot)


def test_an_unknown_data_set_is_named(tmp_path: Path) -> None:
    config = toy_config(tmp_path, STAGE)
    stage = replace(config.curriculum["tune"], blend={"a": 1.0, "x": 1.0})
    with pytest.raises(ValueError, match=r"stage\.blend names x; add to data\.datasets"):
        source(replace(config, curriculum={"tune": stage}), lambda name: False)
