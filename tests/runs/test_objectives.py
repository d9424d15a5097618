"""What is known of an objective before anything is built."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, StageConfig
from megatron_af.config.components import UnknownComponent
from megatron_af.runs.objectives import OBJECTIVES, spec_of
from megatron_af.train.objectives.base import Objective

STAGE = StageConfig()
TOOLS = Path(__file__).parents[2] / "tools"


class Ours(Objective):
    parts = ("encoder", "probe")

    def problems(self, config: Config, stage: str) -> Iterator[str]:
        yield f"{stage}: mend it"


class NoObjective:
    pass


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_built_in_ones_have_parts_and_metrics(name: str) -> None:
    spec = spec_of(replace(STAGE, objective=name))
    config = Config(name="x", curriculum={"tune": replace(STAGE, objective=name, evaluation=("clotho",))})
    ((tool, _),) = spec.evaluations(config, "tune")
    assert (TOOLS / tool).is_file() and "encoder" in spec.parts and spec.set_metrics
    assert spec.embeds == (name == "contrastive")


def test_anybodys_own_is_found_by_its_place() -> None:
    spec = spec_of(replace(STAGE, objective=f"{__name__}:Ours"))
    assert spec.parts == ("encoder", "probe") and spec.parameters(Config(name="x")) == ["encoder.*", "probe.*"]
    assert list(spec.problems(Config(name="x"), "tune")) == ["tune: mend it"]
    assert spec.files(Config(name="x")) == {} and list(spec.missing(Config(name="x"), "tune")) == []
    with pytest.raises(NotImplementedError, match=r"Ours measures nothing; leave curriculum\.tune\.evaluation empty"):
        spec.evaluations(Config(name="x"), "tune")


@pytest.mark.parametrize("name", ["answr", "nowhere:Thing", f"{__name__}:NoObjective", f"{__name__}:STAGE"])
def test_what_is_none_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnknownComponent, match="'?" + name.split(":")[0].rpartition(".")[2]):
        spec_of(replace(STAGE, objective=name))


@pytest.mark.slow
def test_it_needs_neither_torch_nor_megatron() -> None:
    code = (
        "import sys; from megatron_af.config import StageConfig; from megatron_af.runs.objectives import spec_of; "
        "spec_of(StageConfig()); spec_of(StageConfig(objective='contrastive')); "
        "print([name for name in ('torch', 'megatron.core') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
