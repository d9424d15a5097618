"""Steps follow the curriculum: order, waiting, digests, and what is refused."""

import dataclasses
from pathlib import Path

import pytest

from megatron_af.config import (
    BoundsConfig,
    Config,
    ConfigError,
    DatasetConfig,
    NeighboursConfig,
    ParallelConfig,
    RetrievalConfig,
    StageConfig,
    StepConfig,
    release_steps,
)
from megatron_af.config.loading import load_config
from megatron_af.pipeline.graph import RELEASE, StepSpec, pipeline_steps

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"

CURRICULUM = {
    "lm": StageConfig(steps=3),
    "clap": StageConfig(objective="contrastive"),
    "align": StageConfig(entry={"lm": "lm", "encoder": "clap", "rows": "/models/rows.safetensors"}),
    "tune": StageConfig(entry={"all": "align"}, evaluation=("test",)),
}
CONFIG = Config(name="toy", curriculum=CURRICULUM)


def by_name(config: Config, pipeline: str = "curriculum") -> dict[str, StepSpec]:
    return {spec.name: spec for spec in pipeline_steps(config, pipeline)}


def test_curriculum_in_order() -> None:
    steps = by_name(CONFIG)
    assert list(steps) == ["prepare", "lm", "clap", "align", "tune", "evaluate-tune", *RELEASE]
    waits = {name: spec.after for name, spec in steps.items()}
    assert waits["lm"] == waits["clap"] == ("prepare",), "they do not build on each other"
    assert waits["align"] == ("prepare", "lm", "clap")
    assert waits["tune"] == ("prepare", "align")
    assert waits["evaluate-tune"] == ("tune",)
    assert waits["register"] == ("lm", "clap", "align", "tune", "evaluate-tune")
    assert (waits["gate"], waits["promote"]) == (("register",), ("gate",))


def test_a_release_waits_for_an_index_that_no_stage_needs() -> None:
    steps = by_name(load_config(DEMO))
    assert steps["retrieval"].after == ("clap",)
    assert "retrieval" in steps["register"].after
    assert list(steps).index("retrieval") < list(steps).index("register")


def test_commands() -> None:
    steps = by_name(CONFIG)
    assert [(name, spec.kind, spec.stage) for name, spec in steps.items() if spec.kind != "command"] == [
        ("lm", "train", "lm"), ("clap", "train", "clap"), ("align", "train", "align"), ("tune", "train", "tune"),
        ("evaluate-tune", "measure", "tune"),
    ]  # fmt: skip
    assert steps["gate"].argv("run.yaml") == ("tools/promote.py", "gate", "--config", "run.yaml")
    assert [name for name, spec in steps.items() if spec.distributed] == [*CURRICULUM, "evaluate-tune"]


def test_a_stage_added_in_the_configuration_is_a_step() -> None:
    longer = CURRICULUM | {"long": StageConfig(entry={"all": "tune"})}
    steps = by_name(dataclasses.replace(CONFIG, curriculum=longer))
    assert steps["long"].after == ("prepare", "tune")
    assert "long" in steps["register"].after


def test_a_gated_stage_is_measured_before_the_next() -> None:
    gated = StageConfig(evaluation=("test",), exit_gate={"test/overall/audio": BoundsConfig(min=50)})
    steps = by_name(dataclasses.replace(CONFIG, curriculum=CURRICULUM | {"clap": gated}))
    assert steps["align"].after == ("prepare", "lm", "evaluate-clap")


def test_a_step_between_two_stages() -> None:
    index = StepConfig(run=("tools/index.py",), after=("clap",), before=("tune",))
    steps = by_name(dataclasses.replace(CONFIG, steps={**release_steps(), "index": index}))
    assert list(steps).index("clap") < list(steps).index("index") < list(steps).index("tune")
    assert "index" in steps["tune"].after
    assert "index" not in steps["align"].after


def with_neighbours(config: Config) -> Config:
    datasets = {
        "train": DatasetConfig(manifest="train.jsonl"),
        "knn": DatasetConfig(manifest="knn.jsonl", neighbours=NeighboursConfig(of="train")),
    }
    tune = dataclasses.replace(config.curriculum["tune"], blend={"train": 1.0, "knn": 0.5})
    return dataclasses.replace(
        config,
        curriculum=config.curriculum | {"tune": tune},
        data=dataclasses.replace(config.data, datasets=datasets),
        retrieval=RetrievalConfig(stage="clap"),
    )


def test_neighbours_are_found_before_the_stages_that_learn_from_them() -> None:
    config = with_neighbours(CONFIG)
    steps = by_name(config)
    retrieval = steps["retrieval"]
    assert retrieval.argv("run.yaml") == ("tools/build_retrieval.py", "interleave", "--config", "run.yaml")
    assert retrieval.distributed and retrieval.after == ("clap",)
    assert steps["tune"].after == ("prepare", "align", "retrieval")
    assert "retrieval" not in steps["align"].after and "retrieval" not in by_name(CONFIG)
    more = dataclasses.replace(config, retrieval=RetrievalConfig(stage="clap", datasets=("train",)))
    assert by_name(more)["retrieval"].reads != retrieval.reads
    published = by_name(dataclasses.replace(config, retrieval=RetrievalConfig(encoder="models/clap")))
    assert published["retrieval"].after == ("prepare",) and published["tune"].after == ("prepare", "align", "retrieval")
    own = StepConfig(run=("mine.py",), after=("clap",), before=("align",))
    assert by_name(dataclasses.replace(config, steps={**config.steps, "retrieval": own}))["retrieval"].run == (
        "mine.py",
    )
    circle = dataclasses.replace(config.curriculum["clap"], blend={"knn": 1.0})
    with pytest.raises(ConfigError, match="wait for each other in a circle"):
        by_name(dataclasses.replace(config, curriculum=config.curriculum | {"clap": circle}))


def test_parts_of_the_pipeline() -> None:
    assert list(by_name(CONFIG, "evaluate")) == ["evaluate-tune"]
    promote = by_name(CONFIG, "promote")
    assert tuple(promote) == RELEASE
    assert promote["register"].after == ()
    assert promote["gate"].reads == by_name(CONFIG)["gate"].reads


def test_what_changes_a_step_changes_those_behind_it() -> None:
    changed_stage = CURRICULUM | {"clap": StageConfig(objective="contrastive", steps=7)}
    before, after = by_name(CONFIG), by_name(dataclasses.replace(CONFIG, curriculum=changed_stage))
    other = {name for name in before if before[name].reads != after[name].reads}
    assert other == {"clap", "align", "tune", "evaluate-tune", *RELEASE}
    moved = dataclasses.replace(CONFIG, parallel=ParallelConfig(tensor=2), log_every_steps=1)
    assert {name: spec.reads for name, spec in by_name(moved).items()} == {n: s.reads for n, s in before.items()}


def test_every_problem_is_named_at_once() -> None:
    wrong = {
        "prepare": StepConfig(),
        "lm": StepConfig(run=("a.py",)),
        "index": StepConfig(run=("i.py",), after=("clip",), before=("tune", "rest")),
    }
    with pytest.raises(ConfigError) as error:
        pipeline_steps(dataclasses.replace(CONFIG, steps=wrong), "curriculum")
    assert [problem.split(" ")[0] for problem in error.value.problems] == [
        "steps.lm", "steps.prepare.run", "steps.index.after", "steps.index.before",
    ]  # fmt: skip
    assert "steps.index.after names 'clip': there are prepare, lm" in str(error.value)


def test_a_circle_is_refused() -> None:
    index = StepConfig(run=("i.py",), after=("tune",), before=("align",))
    with pytest.raises(ConfigError, match="wait for each other in a circle"):
        pipeline_steps(dataclasses.replace(CONFIG, steps={**release_steps(), "index": index}), "curriculum")
