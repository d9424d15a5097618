"""A third objective, all of it in this file, trains, resumes, saves and is measured through the public path."""

import argparse
import copy
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_af.config import Config, StageConfig
from megatron_af.config.components import UnknownComponent
from megatron_af.config.loading import load_config, to_yaml
from megatron_af.data.batch import StepBatch
from megatron_af.data.rows import Row, RowError
from megatron_af.data.sample_source import Sample
from megatron_af.data.sampler import Draw
from megatron_af.parallel.device import Device, current_device, make_megatron_portable
from megatron_af.pipeline.curriculum import run_curriculum
from megatron_af.prepare.inspection import look
from megatron_af.runs.check import check
from megatron_af.runs.paths import latest, read_result
from megatron_af.runs.results import Results, bind_results
from megatron_af.train.objectives.base import Objective, objective_of

NAME = "tests.train.objectives.test_base:Loudness"


@dataclass(frozen=True, kw_only=True)
class Levels:
    """How loud each clip is said to be."""

    level_B: Tensor
    clip_B: list[int]
    num_tokens: int = 0


class LevelTexts:
    def of(self, row: Row, draw: Draw) -> tuple[Row, float]:
        if len(row.clips) != 1:
            raise RowError(f"row {row.id}: one clip has one level")
        return row, len(row.id) / 10

    def collate(
        self, samples: Sequence[Sample[float]], heard: Sequence[tuple[int, ...]], windows: Sequence[int]
    ) -> Levels:
        return Levels(level_B=torch.tensor([s.text for s in samples]), clip_B=[clip for (clip,) in heard])

    def shown(self, row: Row) -> list[Any]:
        return [((f"level {len(row.id) / 10}", True, False),)]


class LoudnessModel(nn.Module):
    """The encoder, and one number out of the mean of a clip's tokens."""

    share_embeddings_and_output_weights = False
    vp_stage = None

    def __init__(self, config: Config) -> None:
        from megatron_af.audio.htsat import HTSAT

        super().__init__()
        self.encoder = HTSAT(config.model.front_end, config.model.encoder)
        self.head = nn.Linear(config.model.encoder.feature_dim, 1)

    def forward(self, mel_WFM: Tensor, windows: Sequence[int]) -> Tensor:
        per_clip = self.encoder(mel_WFM).mean(1).split(list(windows))
        return self.head(torch.stack([clip.mean(0) for clip in per_clip])).squeeze(1)


class LoudnessLearner:
    encoder_side = None

    def __init__(self, config: Config, stage: StageConfig, model: Any, groups: Any) -> None:
        from megatron_af.decoder.transformer_config import transformer_config
        from megatron_af.train.objectives.answer_learner import wrap_front
        from megatron_af.train.optimizer import build_optimizer

        self._model = model.front
        layout = copy.copy(transformer_config(config, current_device()))
        self._ddp = wrap_front(model.front, layout, config.parallel.distributed_optimizer, groups)
        self.optimizer = build_optimizer(config.parallel, stage.optimizer, config.precision, [], self._ddp, groups)

    def forward_backward(self, batch: StepBatch[Levels]) -> dict[str, float]:
        self._ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        self._model.train()
        assert batch.audio.mel_WFM is not None
        said_C = self._model(batch.audio.mel_WFM, batch.audio.clip_windows)
        loss = (said_C[batch.text.clip_B] - batch.text.level_B).square().sum()
        loss.backward()
        totals = torch.tensor([loss.item(), len(batch.text.level_B)], dtype=torch.float64)
        dist.all_reduce(totals)
        self._ddp.finish_grad_sync()
        self._ddp.scale_gradients(1 / totals[1].item())
        return {"loss": (totals[0] / totals[1]).item(), "clips": totals[1].item()}

    def flops(self, batch: StepBatch[Levels]) -> float:
        return 1.0

    def sync_parameters(self) -> None: ...

    def close(self) -> None: ...


class Loudness(Objective):
    parts = ("encoder", "head")
    step_metrics = ("clips",)
    set_losses = ()
    set_metrics = ("error",)

    def problems(self, config: Config, stage: str) -> Iterator[str]:
        if config.curriculum[stage].max_windows > 8:
            yield f"curriculum.{stage}.max_windows: loudness is of short clips; set it to 8 or less"

    def evaluations(self, config: Config, stage: str) -> list[tuple[str, list[str]]]:
        return [(__file__, ["--json", str(config.stage_folder(stage) / "hearing.json")])]

    def texts(self, config: Config, stage: StageConfig, tokenizer: Any) -> LevelTexts:
        return LevelTexts()

    def build(self, config: Config, tokenizer: Any, device: Device, fresh: Any) -> Any:
        from megatron_af.model import AudioFlamingo

        torch.manual_seed(config.seed)
        return AudioFlamingo(front=LoudnessModel(config).to(device.torch), chunks=[])

    def start(self, config: Config, stage: StageConfig, model: Any, groups: Any, device: Device) -> LoudnessLearner:
        return LoudnessLearner(config, stage, model, groups)


def main() -> None:
    """The objective's own evaluator: what a pipeline starts under torchrun."""
    from megatron_af.data.clips import ClipLoader
    from megatron_af.data.shards import open_rows
    from megatron_af.data.storage import DataRoot
    from megatron_af.data.stream import hear
    from megatron_af.parallel import groups as process_groups
    from megatron_af.train.checkpoint_reading import load_parts

    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--json")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    dist.init_process_group("gloo")
    groups = process_groups.initialize(config.parallel, config.seed)
    stage = config.curriculum[config.stage]
    objective = objective_of(stage)
    model: Any = objective.build(config, None, current_device(), ())  # type: ignore[arg-type]
    checkpoint = latest(config.stage_folder(config.stage) / "checkpoints")
    assert checkpoint is not None
    load_parts(model, groups, checkpoint, objective.parts)
    numbers = {}
    for name in stage.evaluation:
        rows = [r for r in open_rows(DataRoot(config.data.root), config.data.datasets[name].manifest) if r.clips]
        with torch.no_grad():
            audio, _ = hear(ClipLoader(config, max_windows=2, device=current_device()), rows[:4])
            numbers[name] = {"error": model.front.eval()(audio.mel_WFM, audio.clip_windows).abs().mean().item()}
    if dist.get_rank() == 0:
        Path(arguments.json).write_text(json.dumps(numbers))
        bind_results(config, [Path(arguments.json)])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    from tests import tiny
    from tests.data.toy import toy_config, toy_rows, write_manifest

    toy, small = toy_config(tmp_path_factory.mktemp("run")), tiny.config()
    root = Path(toy.data.root)
    rows = [row for row in toy_rows(root, "a", 16) if len(row.clips) == 1]
    datasets = {"a": write_manifest(root, "a", rows), "b": toy.data.datasets["b"]}
    stage = replace(
        small.curriculum["stage"],
        objective=NAME,
        trainable=("*",),
        blend={"a": 1.0},
        global_batch_samples=4,
        micro_batch_samples=1,
        steps=4,
        evaluation=("b",),
    )
    return replace(
        toy,
        model=replace(small.model, front_end=toy.model.front_end),
        data=replace(toy.data, datasets=datasets),
        curriculum={"level": stage},
        tracking=replace(toy.tracking, enabled=False),
        stage="level",
        log_every_steps=1,
    )


def _train(rank: int, world_size: int, config: Config, stop_after: int = 0, every: int = 0) -> Any:
    """Losses by step, and the checkpoints in the order in which they could be read."""
    from megatron_af.train.callbacks import Callback
    from megatron_af.train.trainer import Trainer

    losses: dict[int, float] = {}
    checkpoints: list[str] = []
    config = replace(config, checkpoint=replace(config.checkpoint, every_steps=every))

    class Watch(Callback):
        def on_step(self, trainer: Trainer, record: dict[str, float]) -> None:
            losses[trainer.step] = record["loss"]
            if trainer.step == stop_after:
                trainer.request_stop()

        def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
            checkpoints.append(path.name)

    with Trainer(config, [Watch()]) as trainer:
        trainer.train()
    return losses, checkpoints


@pytest.mark.slow
def test_it_trains_and_resumes_in_any_layout(config: Config) -> None:
    from tests.distributed import run_distributed

    through, written = run_distributed(_train, 2, replace(config, name="through"), every=2)[0]
    assert written == ["step_00000002", "step_00000004"], "the last step is written once"
    first, written = run_distributed(_train, 2, replace(config, name="cut"), 2)[0]
    assert written == ["step_00000002"]
    second, _ = run_distributed(_train, 2, replace(config, name="cut"))[0]
    assert set(first) == {1, 2} and set(second) == {3, 4} and first | second == through
    assert run_distributed(_train, 1, replace(config, name="alone"))[0][0] == pytest.approx(through, rel=1e-5)
    assert len(set(through.values())) == 4
    manifest = json.loads(next((config.stage_folder("level").parents[1] / "cut").rglob("checkpoint.json")).read_text())
    assert set(manifest["parts"]) == {"encoder", "head"}


@pytest.mark.slow
def test_a_curriculum_trains_measures_and_gates_it(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.data.root)
    gate = {"clips": {"min": 4}, "b/error": {"min": 0}}
    path = Path(config.output) / "whole.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_yaml(replace(config, name="whole", stage="")))
    overrides = [f"curriculum.level.exit_gate.{name}.min={bound['min']}" for name, bound in gate.items()]
    whole = load_config(path, overrides)
    assert check(whole, 1) == []
    run_curriculum(whole, say=lambda line: None)
    folder = whole.stage_folder("level")
    assert read_result(folder)["clips"] == 4
    assert Results.load(folder).metrics["b/error"] > 0


def test_it_says_what_it_reads(config: Config) -> None:
    from megatron_af.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(config.data.tokenizer)
    (sample,) = look(config, "a", tokenizer=tokenizer, device=current_device(), count=1)
    assert sample.segments == (((f"level {len(sample.row.id) / 10}", True, False),),)


def test_its_own_rules_are_checked_and_others_names_refused(config: Config) -> None:
    stage = config.curriculum["level"]

    def problems(**changes: Any) -> list[str]:
        return check(replace(config, curriculum={"level": replace(stage, **changes)}), 1)

    assert problems() == []
    assert problems(max_windows=9) == ["curriculum.level.max_windows: loudness is of short clips; set it to 8 or less"]
    (entry,) = problems(entry={"lm": "x"})
    assert "no such part of the model" in entry and "head" in entry
    (pattern,) = problems(trainable=("lm.*",))
    assert "pattern 'lm.*' matches no parameter" in pattern
    (gate,) = check(load_config_of(config, "curriculum.level.exit_gate.temperature.min=0"), 1)
    assert "temperature: nobody logs it" in gate


def load_config_of(config: Config, *overrides: str) -> Config:
    path = Path(config.output) / "one.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_yaml(config))
    return load_config(path, overrides)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("anser", "'anser' is neither built in nor module:Class of your own; did you mean answer?"),
        ("no.such:Thing", "'no.such:Thing' cannot be imported: No module named 'no'; expected module:Class"),
        ("json:dumps", "'json:dumps' is no Objective: expected a subclass of"),
    ],
)
def test_a_name_of_no_objective_is_one_clear_problem(config: Config, name: str, message: str) -> None:
    stage = replace(config.curriculum["level"], objective=name)
    (problem,) = check(replace(config, curriculum={"level": stage}), 1)
    assert problem.startswith(f"curriculum.level.objective = {message}")
    with pytest.raises(UnknownComponent):
        objective_of(stage)


if __name__ == "__main__":
    make_megatron_portable()
    sys.exit(main())
