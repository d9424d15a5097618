"""The shipped curricula load, can run, and say what the papers and their public configurations say."""

import re
from pathlib import Path

import pytest

from megatron_af.config import Config, StageConfig
from megatron_af.config.loading import load_config
from megatron_af.release.gates import read_gates
from megatron_af.runs.check import check
from megatron_af.runs.sizes import batch_samples

CONFIGS = Path(__file__).parents[1] / "configs"
PARTS = {
    "encoder": "encoder.norm.weight",
    "transform": "transform.layer_stack.0.slf_attn.w_qs.weight",
    "xattn": "lm.decoder.layers.3.xattn.gate_attn",
    "rows": "added_rows",
    "lm": "lm.decoder.layers.3.mlp.linear_fc1.weight",
    "embedding": "lm.embedding.word_embeddings.weight",
}


@pytest.fixture(scope="module")
def af2() -> Config:
    return load_config(CONFIGS / "af2_3b.yaml")


@pytest.fixture(scope="module")
def af1() -> Config:
    return load_config(CONFIGS / "af1.yaml")


def trains(stage: StageConfig) -> set[str]:
    return {part for part, name in PARTS.items() if stage.trains(name)}


@pytest.mark.parametrize("which", ["af1", "af2"])
def test_it_can_run(which: str, request: pytest.FixtureRequest) -> None:
    config: Config = request.getfixturevalue(which)
    assert check(config, config.launch.nodes * config.launch.processes_per_node) == []
    for stage in config.curriculum.values():
        assert set(stage.evaluation) <= set(config.data.datasets)
        assert {name.split("/")[0] for name in stage.exit_gate} <= set(stage.evaluation)


def test_af2_follows_the_paper(af2: Config) -> None:
    clap, pretrain, finetune, long = af2.curriculum.values()
    assert clap.objective == "contrastive" and clap.contrastive.loss == "af_clap"
    assert [stage.max_windows for stage in (pretrain, finetune, long)] == [3, 12, 30]
    assert trains(pretrain) == {"transform", "xattn", "rows"}
    assert trains(finetune) == {"encoder", "transform", "xattn", "rows"}
    assert trains(long) == {"transform", "xattn", "rows"}
    assert [stage.optimizer.learning_rate for stage in (pretrain, finetune)] == [1e-4, 2e-5]
    for stage in (pretrain, finetune):
        assert (stage.optimizer.schedule, stage.optimizer.warmup_steps) == ("constant", 1875)
    for stage in (pretrain, finetune, long):
        assert (stage.optimizer.weight_decay, stage.optimizer.clip_norm, stage.passes) == (0.1, 1.0, 1.0)
    assert pretrain.entry["encoder"] == "clap" and finetune.entry == {"all": "pretrain"}
    assert len(pretrain.blend) == 19 and sum(pretrain.blend.values()) == pytest.approx(38.2)
    assert len(finetune.blend) == 29 and sum(finetune.blend.values()) == pytest.approx(50.026)


def test_every_line_of_af2s_blends_says_where_it_is_from() -> None:
    text = (CONFIGS / "curriculum/af2.yaml").read_text()
    lines = [line for line in text.splitlines() if re.fullmatch(r"      [\w-]*[A-Z][\w-]*: [\d.]+( #.*)?", line)]
    assert len(lines) == 48
    assert [line for line in lines if not re.search(r"# (paper|config|ours)", line)] == []


def test_af2_long_stages_take_fewer_samples_of_one_budget(af2: Config) -> None:
    """On 128 GPUs with tensor parallelism 2, 64 data-parallel ranks."""
    samples = [batch_samples(af2, stage, world_size=128) for stage in list(af2.curriculum.values())[1:]]
    assert samples == [1024, 512, 256]


def test_af1_hears_as_clapcap_does(af1: Config) -> None:
    front, encoder = af1.model.front_end, af1.model.encoder
    assert (front.sample_rate, front.window_seconds, front.overlap_seconds) == (44_100, 7.0, 5.25)
    assert (encoder.tokens_per_window, encoder.feature_dim) == (1, 1024)
    assert af1.model.transform.positions == "sinusoidal" and af1.data.text_style == "af1"


def test_af1_follows_the_public_configurations(af1: Config) -> None:
    pretrain, foundation, four_shot, chat = af1.curriculum.values()
    assert trains(pretrain) == {"transform", "xattn", "rows"}
    for stage in (foundation, four_shot, chat):
        assert trains(stage) == set(PARTS) - {"encoder"}
        assert stage.global_batch_samples == 128 and stage.optimizer.learning_rate == 2e-5
    assert pretrain.global_batch_samples == 384 and pretrain.optimizer.learning_rate == 1e-4
    assert (len(pretrain.blend), len(foundation.blend)) == (18, 42)
    assert foundation.blend == four_shot.blend
    assert foundation.blend["Clotho-AQA-AQA_knn"] == 0.5 and foundation.blend["NSynth-MIR_sft"] == 1.0
    assert (foundation.entry, chat.entry) == ({"all": "pretrain"}, {"all": "four_shot"})
    assert {af1.data.datasets[name].task_prefix_probability for name in foundation.blend} == {1.0}
    assert af1.data.datasets["OpenAQA-AQA"].task_prefix_probability == 0.0


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_tool_of_a_step_exists(file: Path) -> None:
    config = load_config(file)
    tools = [step.run[0] for step in config.all_steps().values()]
    assert {"tools/promote.py"} <= set(tools)
    assert [tool for tool in tools if not (CONFIGS.parent / tool).is_file()] == []


@pytest.mark.parametrize("file", sorted((CONFIGS / "gates").glob("*.yaml")), ids=lambda file: file.name)
def test_gates_can_be_read(file: Path) -> None:
    assert read_gates(str(file)).gates


PROMOTED = [file for file in sorted(CONFIGS.glob("*.yaml")) if load_config(file).registry.gates]


@pytest.mark.parametrize("file", PROMOTED, ids=lambda file: file.stem)
def test_gates_ask_for_what_the_last_stage_measures(file: Path) -> None:
    config = load_config(file)
    asked = {name.split("/")[0] for gate in read_gates(config.registry.gates).gates.values()
             for name in (gate.metric, gate.over) if name}  # fmt: skip
    assert asked <= set(list(config.curriculum.values())[-1].evaluation)
