"""The command, from a folder without data, GPU or processes."""

import json
from pathlib import Path

import pytest

from megatron_af.entry import NO_USE
from tools.plan import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(list(arguments)))
    code = ended.value.code
    assert isinstance(code, int)
    return code


COMMON = ("--config", "configs/af2_0.5b.yaml", "--stage", "long", "--lengths", "af2", "--layouts", "0")


def test_a_plan_with_numbers_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--json", str(tmp_path / "plan.json"), "--picture", str(tmp_path / "plan.svg"))
    assert run(*COMMON, "--gpus", "8", *files) == 0
    assert "GPU hours" in capsys.readouterr().out
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["gpus"] == 8 and told["stages"]["long"]["days"] > 0
    assert (tmp_path / "plan.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*COMMON, "--gpus", "8", "--gpu", "h1000"), "did you mean h100?"),
        ((*COMMON, "--gpus", "0"), "--gpus 0: give 1 or more"),
        ((*COMMON, "--gpus", "2999"), "works"),
        (("--config", "configs/af2_0.5b.yaml", "--gpus", "8", "--stage", "lang"), "did you mean long?"),
        ((*COMMON[:4], "--lengths", "af22", "--gpus", "1"), "--lengths af22: no such file"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == NO_USE
    assert said in capsys.readouterr().err
