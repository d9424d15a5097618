"""What cannot run is refused before any process group is made, and every key of it is named with its fix."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import Config, ConfigError, DatasetConfig
from megatron_af.config_file import to_yaml
from megatron_af.validation import check, validate
from tests import tiny

ROOT = Path(__file__).parents[1]
DATA = {name: DatasetConfig(manifest=f"{name}.jsonl") for name in ("a", "b")}


def runnable(**parallel: Any) -> Config:
    config = tiny.config(**parallel)
    return with_stage(replace(config, data=replace(config.data, datasets=DATA)), max_text_tokens=64)


def with_stage(config: Config, **changes: Any) -> Config:
    return replace(config, curriculum={"stage": replace(config.curriculum["stage"], **changes)})


def with_model(config: Config, section: str, **changes: Any) -> Config:
    model = replace(config.model, **{section: replace(getattr(config.model, section), **changes)})
    return replace(config, model=model)


@pytest.mark.parametrize(
    ("parallel", "world_size"),
    [
        ({}, 1),
        ({}, 4),
        ({"tensor": 2, "sequence": True}, 2),
        ({"pipeline": 2, "virtual_pipeline": 2}, 2),
        ({"tensor": 2, "pipeline": 2, "virtual_pipeline": 2, "sequence": True, "recompute": "full"}, 4),
        ({"pipeline": 2, "distributed_optimizer": True}, 4),
    ],
)
def test_layouts_that_run_pass(parallel: dict[str, Any], world_size: int) -> None:
    assert check(runnable(**parallel), world_size) == []


@pytest.mark.parametrize(
    ("parallel", "world_size", "expected"),
    [
        ({"tensor": 4}, 4, "parallel.tensor = 4 does not divide model.lm.kv_heads = 2: set it to one of 1, 2"),
        ({"pipeline": 3}, 3, "divide model.lm.layers = 4: set their product to one of 1, 2, 4"),
        ({"pipeline": 2, "virtual_pipeline": 4}, 2, "parallel.virtual_pipeline = 4 does not divide model.lm.layers"),
        ({"virtual_pipeline": 2}, 1, "parallel.virtual_pipeline = 2 needs parallel.pipeline of at least 2"),
        ({"sequence": True}, 1, "parallel.sequence shards over the tensor-parallel group"),
        ({"tensor": 2}, 3, "does not divide 3 processes: start a multiple of 2"),
        ({"tensor": 0}, 1, "parallel.tensor = 0: must be at least 1"),
    ],
)
def test_layouts_that_cannot_run_are_refused(parallel: dict[str, Any], world_size: int, expected: str) -> None:
    (problem,) = check(with_stage(runnable(**parallel), micro_batch_samples=1), world_size)
    assert expected in problem


@pytest.mark.parametrize(
    ("section", "changes", "expected"),
    [
        ("cross_attention", {"interval": 0}, "model.cross_attention.interval = 0"),
        ("cross_attention", {"interval": 5}, "set it to 1 … 4"),
        ("lm", {"heads": 6, "kv_heads": 2}, "model.lm.heads = 6 does not divide model.lm.hidden = 64"),
        ("lm", {"kv_heads": 3}, "model.lm.kv_heads = 3 does not divide model.lm.heads = 4"),
        ("transform", {"heads": 0}, "model.transform.heads = 0: must be at least 1"),
        ("encoder", {"heads": (2, 2, 2)}, "give both the same length"),
        ("encoder", {"patch_size": 256}, "leaves no token of a window"),
        ("front_end", {"mel_bins": 80}, "HTS-AT's image holds 64"),
        ("front_end", {"overlap_seconds": 10.0}, "model.front_end.overlap_seconds = 10.0"),
        ("front_end", {"window_seconds": 20.0}, "makes 2001 mel frames; HTS-AT takes 1024"),
        ("front_end", {"max_hz": 9_000.0}, "max_hz = 9000.0"),
    ],
)
def test_models_that_cannot_be_built_are_refused(section: str, changes: dict[str, Any], expected: str) -> None:
    (problem,) = check(with_model(runnable(), section, **changes), 1)
    assert expected in problem


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_windows": 0}, "curriculum.stage.max_windows = 0: must be at least 1"),
        ({"global_batch_samples": 6}, "curriculum.stage.global_batch_samples = 6: must be a multiple of 4"),
        ({"batch_tokens": 1_000, "max_windows": 30}, "curriculum.stage.batch_tokens = 1000: the longest sample has"),
        ({"trainable": ("encodr.*",)}, "pattern 'encodr.*' matches no parameter; did you mean encoder.*?"),
        ({"frozen": ("lm.decoder.layers.0.cross.*",)}, "curriculum.stage.frozen: pattern 'lm.decoder.layers.0.cross"),
        ({"trainable": ("lm.decoder.layers.4.*",)}, "pattern 'lm.decoder.layers.4.*' matches no parameter"),
        ({"trainable": ("lm.output_layer.*",)}, "matches no parameter"),
        ({"entry": {"encodr": "x"}}, "curriculum.stage.entry.encodr: no such part of the model; did you mean encoder?"),
        ({"entry": {"all": "stage"}}, "comes no earlier than stage in curriculum"),
        ({"blend": {}}, "curriculum.stage.blend is empty"),
        ({"blend": {"c": 1.0}}, "curriculum.stage.blend.c: not in data.datasets; known: a, b"),
        ({"blend": {"a": 0.0}}, "curriculum.stage.blend.a = 0.0: must be above 0"),
        ({"max_text_tokens": 1_000}, "model.lm.max_positions = 128"),
    ],
)
def test_stages_that_cannot_run_are_refused(changes: dict[str, Any], expected: str) -> None:
    (problem,) = check(with_stage(runnable(), **changes), 2)
    assert expected in problem


@pytest.mark.parametrize("pattern", ["*", "lm.*.xattn.*", "lm.decoder.layers.[01].mlp.*", "*.gate_*", "added_rows"])
def test_patterns_that_can_match_pass(pattern: str) -> None:
    assert check(with_stage(runnable(), trainable=(pattern,)), 1) == []


def test_the_interleaved_schedule_needs_micro_batches_in_multiples_of_the_pipeline() -> None:
    config = with_stage(runnable(pipeline=2, virtual_pipeline=2), global_batch_samples=6, micro_batch_samples=2)
    (problem,) = check(config, 2)
    assert "global_batch_samples = 6: must be a multiple of 4" in problem
    assert "interleaved" in problem


def test_missing_files_are_found_and_present_ones_accepted(tmp_path: Path) -> None:
    config = with_stage(runnable(), entry={"lm": "gone"})
    data = replace(config.data, root=str(tmp_path / "data"), tokenizer=str(tmp_path / "tokenizer.json"))
    config = replace(config, data=data)
    with pytest.raises(ConfigError) as caught:
        validate(config, 1)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "data.root",
        "data.tokenizer",
        "curriculum.stage.entry.lm",
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").touch()
    (tmp_path / "tokenizer.json").touch()
    config = with_stage(config, entry={"lm": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"data\.datasets\.b\.manifest = b\.jsonl: not in .*data") as caught:
        validate(config, 1)
    assert len(caught.value.problems) == 1
    (tmp_path / "data" / "b.jsonl").touch()
    validate(config, 1)


def test_entry_from_an_earlier_stage_needs_its_checkpoint(tmp_path: Path) -> None:
    config = replace(runnable(), output=str(tmp_path))
    stages = {"lm": config.curriculum["stage"], "stage": replace(config.curriculum["stage"], entry={"lm": "lm"})}
    config = replace(config, curriculum=stages)
    with pytest.raises(ConfigError, match=r"stage lm has no checkpoint in .*tiny/lm; run stage=lm first"):
        validate(config, 1)


@pytest.mark.parametrize(
    ("stage", "expected"), [("", "add stage=NAME with one of stage"), ("stge", "did you mean stage?")]
)
def test_the_stage_must_be_one_of_the_curriculum(stage: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(replace(runnable(), stage=stage), 1)
    assert expected in caught.value.problems[0]


def test_the_tool_stops_with_one_message_before_any_process_group(tmp_path: Path) -> None:
    config = with_model(with_stage(runnable(tensor=4), entry={"lm": "gone"}), "cross_attention", interval=0)
    (tmp_path / "bad.yaml").write_text(to_yaml(config))
    # An address that no process group could be made at: the message must come without one.
    environment = os.environ | {"WORLD_SIZE": "6", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "tools/pretrain_af.py", "--config", str(tmp_path / "bad.yaml")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    for key in ("parallel.tensor", "model.cross_attention.interval", "data.root", "data.tokenizer", "entry.lm"):
        assert key in done.stderr
    assert "Traceback" not in done.stderr
