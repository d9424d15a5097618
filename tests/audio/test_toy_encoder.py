"""An encoder of one's own is one file: it trains, is checked, counted, written, cached and heard, as HTS-AT is."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_af.audio.encoder import AudioEncoder
from megatron_af.config import Config, EncoderConfig, FrontEndConfig
from megatron_af.config.effects import Effect, values
from megatron_af.config.loading import load_config, to_yaml
from megatron_af.flops import Tally
from megatron_af.runs.check import check
from tests import tiny
from tests.distributed import run_distributed
from tests.train import toy_run as tool

pytestmark = pytest.mark.slow

KIND = f"{__name__}:MeanEncoder"
STEPS = 3


class MeanEncoder(AudioEncoder):
    """Each of some equal parts of a window as a projection of its mean spectrum."""

    @property
    def tokens_per_window(self) -> int:
        return int(self.config.settings.get("parts", 0))

    @property
    def feature_dim(self) -> int:
        return int(self.config.settings.get("width", 0))

    @property
    def time_steps(self) -> int:
        return self.tokens_per_window

    def problems(self, front_end: FrontEndConfig) -> Iterator[str]:
        for key in ("parts", "width"):
            if not self.config.settings.get(key):
                yield f"model.encoder.settings.{key} is not set: give the toy encoder one"

    def tally(self, tally: Tally) -> bool:
        size = FrontEndConfig().mel_bins * self.feature_dim
        return tally.linear(False, "encoder.project", size * self.tokens_per_window, "windows", bias=True)

    def build(self, front_end: FrontEndConfig, *, pretraining: bool = False) -> nn.Module:
        return MeanNetwork(front_end.mel_bins, self.tokens_per_window, self.feature_dim)


class MeanNetwork(nn.Module):
    def __init__(self, mel_bins: int, parts: int, width: int) -> None:
        super().__init__()
        self.parts, self.project = parts, nn.Linear(mel_bins, width)

    def forward(self, mel_WFM: Tensor) -> Tensor:
        level_WLM = torch.stack([part.mean(1) for part in (mel_WFM / 40 + 1).tensor_split(self.parts, 1)], 1)
        features_WLD: Tensor = self.project(level_WLM.to(self.project.weight.dtype))
        return features_WLD


def config(trainable: tuple[str, ...] = tiny.ALL, **settings: Any) -> Config:
    found = tiny.config(trainable)
    encoder = EncoderConfig(kind=KIND, settings=settings or {"parts": 5, "width": 32})
    return dataclasses.replace(found, model=dataclasses.replace(found.model, encoder=encoder))


def test_its_settings_come_from_yaml_and_count_as_weights(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(config()))
    loaded = load_config(tmp_path / "run.yaml", ["model.encoder.settings.width=64"])
    assert loaded.model.encoder.feature_dim == 64 and loaded.model.encoder.tokens_per_window == 5
    assert values(loaded, Effect.WEIGHTS)["model.encoder.settings"] == {"parts": 5, "width": 64}


def test_its_problems_are_told_with_those_of_the_rest() -> None:
    told = "\n".join(check(config(width=33), 1))
    assert "model.encoder.settings.parts is not set" in told
    assert "model.transform.heads = 2 does not divide the encoder's width, model.encoder.settings = 33" in told
    assert "patch_size" not in told and "HTS-AT" not in told


def learn(rank: int, world: int, run: Config) -> dict[str, Any]:
    """A few steps on one batch."""
    from megatron_af.model import build
    from megatron_af.parallel import groups as process_groups
    from megatron_af.parallel.device import current_device
    from megatron_af.train.objectives.answer_learner import AnswerLearner
    from megatron_af.train.trainable import select

    stage = run.curriculum["stage"]
    groups = process_groups.initialize(run.parallel, run.seed)
    model = build(run, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    select(model.named_parameters(), stage)
    learner = AnswerLearner(run, stage, model, groups, torch.device("cpu"))
    layout = {"dp_rank": groups.data_rank, "dp_size": groups.data_size}
    layout |= {"mp_rank": groups.model_rank, "mp_size": groups.model_size}
    batch = tiny.step_batch(0, **layout)
    before = model.front.get_parameter("encoder.project.weight").detach().clone()
    losses = []
    for _ in range(STEPS):
        losses.append(learner.forward_backward(batch)["loss"])
        for group in learner.optimizer.param_groups:
            group["lr"] = 1e-2
        learner.optimizer.step_checked()
    moved = float((model.front.get_parameter("encoder.project.weight") - before).abs().max())
    process_groups.destroy()
    return {"losses": losses, "moved": moved}


@pytest.mark.parametrize("layout", [{}, {"tensor": 2}], ids=["DP1", "TP2"])
def test_it_trains_in_any_layout(layout: dict[str, int]) -> None:
    run = dataclasses.replace(config(), parallel=dataclasses.replace(config().parallel, **layout))
    found = run_distributed(learn, layout.get("tensor", 1), run)[0]
    assert found["losses"][-1] < found["losses"][0] and found["moved"] > 1e-3


run_folder = tool.run_folder
"""Recordings, a tokenizer and a YAML file whose model names HTS-AT."""


def test_the_tools_train_and_measure_it_and_a_later_stage_reads_it(run_folder: Path) -> None:
    rows = (run_folder / "data/train.jsonl").read_text().splitlines(keepends=True)
    (run_folder / "data/heard.jsonl").write_text("".join(row for row in rows if json.loads(row)["clips"][:1]))
    top = run_folder / "tiny.yaml"
    top.write_text(top.read_text().replace("datasets:", "datasets:\n    heard: {manifest: heard.jsonl}"))
    changes = [
        "name=toy",
        f"model.encoder.kind={KIND}",
        "model.encoder.settings={parts: 5, width: 32}",
        "curriculum.align.steps=3",
        "curriculum.tune.steps=2",
        "curriculum.align.evaluation=[heard]",
    ]
    assert len(tool.losses(tool.train(run_folder, *changes))) == 3
    assert list((run_folder / "features").rglob("*")), "its features were not kept"
    assert len(tool.losses(tool.train(run_folder, *changes, "stage=tune"))) == 2
    measure = [sys.executable, str(tool.ROOT / "tools/evaluate.py"), "--config", str(run_folder / "tiny.yaml")]
    done = subprocess.run(
        [*measure, *changes], env=tool.environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads((run_folder / "runs/toy/align/hearing.json").read_text())["heard"]["overall"]["n"] > 0


def test_what_it_costs_is_what_torch_counts() -> None:
    from megatron_af.flops import Amounts
    from megatron_af.train.flops import encoder_tally

    run = config()
    window = encoder_tally(run.model, run.curriculum["stage"]).of(Amounts(windows=1))
    assert window == 2 * 2 * 64 * 32 * 5  # forward and the weight's gradient
