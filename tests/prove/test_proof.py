"""Faults that are planted are caught by a proof; a run without one holds. ``make faults`` plants all twelve."""

from pathlib import Path

import pytest

from megatron_af.config import ConfigError, ParallelConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.prove.compare import Agreement
from megatron_af.prove.proof import Bench, Finding, last_line, told
from megatron_af.prove.shrink import shrink
from tests.prove.planted import FAULTS, caught, small_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(small_run(tmp_path_factory.mktemp("planted")))


def test_without_a_fault_everything_holds(bench: Bench) -> None:
    found = list(bench.layout("TP2+SP", 2, ParallelConfig(tensor=2, sequence=True)))
    assert len(found) == 3 and all(finding.holds for finding in found), [told(finding) for finding in found]
    assert [len(finding.agreements) for finding in found] == [5, 4, 4] and bench.silent == ()
    assert found[0].agreements[2].compared > 100 and found[1].agreements[2].bound == 0.0


@pytest.mark.parametrize("fault", ["gate not reduced", "mask off by one", "optimizer not restored"])
def test_a_planted_fault_is_caught(bench: Bench, fault: str) -> None:
    assert caught(bench, fault)


def test_the_suite_has_twelve() -> None:
    assert len(FAULTS) == 12


def test_a_layout_that_cannot_run_is_a_finding(bench: Bench) -> None:
    (found,) = bench.layout("TP3", 3, ParallelConfig(tensor=3))
    assert not found.holds and "parallel.tensor = 3 does not divide" in found.problem
    assert "BROKEN; cannot run at this size" in told(found)


def test_a_stage_that_cannot_run_alone_is_refused(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "demo.yaml", ["curriculum.tune.trainable=[nothing.*]"])
    with pytest.raises(ConfigError, match="cannot be proven: its shrunk form cannot run"):
        Bench(shrink(config, "tune", tmp_path))


def test_the_worst_is_told() -> None:
    fine = Agreement(what="weights", compared=1, error=9e-5, bound=1e-4, worst="a")
    bad = Agreement(what="gradients", compared=1, error=3e-5, bound=2e-5, worst="b")
    assert "worst: gradients, 3.0e-05 (bound 2e-05) b" in told(
        Finding(stage="s", layout="TP2", question="q", agreements=(fine, bad))
    )
    assert last_line("Traceback\n  File x\nValueError: y\n") == "ValueError: y"
