"""What cannot run is refused before any process group is made, and every key of it is named with its fix."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from megatron_af.config import AugmentConfig, BoundsConfig, Config, ConfigError, DatasetConfig
from megatron_af.config.loading import to_yaml
from megatron_af.runs.check import check, validate, validate_evaluation
from megatron_af.runs.presence import missing_at_the_head, missing_for_evaluation, missing_for_training
from tests import tiny

ROOT = Path(__file__).parents[2]
ONE = BoundsConfig(max=1)
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
        ({"pipeline": 5}, 5, "makes 5 chunks, and model.lm.layers = 4: each holds one at least"),
        ({"pipeline": 2, "virtual_pipeline": 4}, 2, "parallel.virtual_pipeline = 4 makes 8 chunks"),
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
        ("encoder", {"patch_size": 256}, "leaves a grid of 0 rows for the 4 folds"),
        ("encoder", {"patch_size": 64}, "leaves a grid of 2 rows"),
        (
            "encoder",
            {"patch_size": 24},
            "patch_size = 24 does not divide the side of HTS-AT's image = 256",
        ),
        ("encoder", {"window_size": 7}, "model.encoder.window_size = 7 does not divide the 16 rows of encoder stage 0"),
        (
            "encoder",
            {"heads": (5, 2)},
            "model.encoder.heads[0] = 5 does not divide the width of encoder stage 0, model",
        ),
        ("encoder", {"depths": ()}, "model.encoder.depths is empty"),
        ("encoder", {"depths": (1, 0)}, "model.encoder.depths[1] = 0: must be at least 1"),
        ("encoder", {"embed_dim": 2, "fusion": True}, "model.encoder.embed_dim = 2: feature fusion needs 4"),
        ("transform", {"heads": 32}, "positions = rope needs an even width, got 1: model.encoder.embed_dim x 2 / 32"),
        ("lm", {"hidden": 36}, "model.lm.heads = 4 gives model.lm.hidden = 36 heads of 9: rotary positions turn pairs"),
        ("cross_attention", {"head_dim": 0}, "model.cross_attention.head_dim = 0: must be at least 1"),
        ("front_end", {"window_seconds": 1e-6}, "is no whole sample at sample_rate = 16000"),
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
        (
            {"pack_tokens": 127, "max_text_tokens": 64, "questions_per_sample": 2},
            "curriculum.stage.pack_tokens = 127: the longest sample has 128 tokens",
        ),
        ({"length_buckets": (3, 3)}, "curriculum.stage.length_buckets = [3, 3]: must ascend"),
        ({"length_buckets": (3, 1)}, "curriculum.stage.length_buckets = [3, 1]: must ascend"),
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
        ({"max_windows": 1_000_000}, "curriculum.stage.max_windows = 1000000: clips of 10000000 s"),
        ({"trainable": ()}, "curriculum.stage.trainable is empty"),
        ({"evaluation": ("a", "bb")}, "curriculum.stage.evaluation: 'bb' is not in data.datasets; did you mean b?"),
        ({"exit_gate": {"los": ONE}}, "curriculum.stage.exit_gate.los: nobody logs it; did you mean loss?"),
        ({"exit_gate": {"a/overall/audio": ONE}}, "exit_gate.a/overall/audio: nobody logs it"),  # not evaluated
        (
            {"evaluation": ("a",), "exit_gate": {"a/overall/audoi": ONE}},
            "exit_gate.a/overall/audoi: nobody logs it; did you mean a/overall/audio?",
        ),
        ({"exit_gate": {"loss": BoundsConfig(min=2, max=1)}}, "nothing lies between min = 2 and max = 1"),
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
    config = with_stage(config, entry={"lm": str(checkpoint(tmp_path / "step_1", lm="."))})
    with pytest.raises(ConfigError, match=r"data\.datasets\.b\.manifest = b\.jsonl: not in .*data") as caught:
        validate(config, 1)
    assert len(caught.value.problems) == 1
    (tmp_path / "data" / "b.jsonl").touch()
    validate(config, 1)


@pytest.mark.parametrize(
    ("augment", "changes", "said"),
    [
        (AugmentConfig(time_seconds=5.0, mel_bins=32), {}, ""),
        (AugmentConfig(time_seconds=5.1), {}, "time_seconds = 5.1: two stripes may blank a window of 10 s; lower it"),
        (AugmentConfig(mel_bins=33), {}, "mel_bins = 33: two stripes may blank all of 64 (model.front_end.mel_bins)"),
        (AugmentConfig(), {"frozen": ("encoder.*",)}, "the encoder is frozen, and its features are made once"),
    ],
)
def test_augmentation_blanks_something_and_not_everything(
    augment: AugmentConfig, changes: dict[str, Any], said: str
) -> None:
    told = [problem for problem in check(with_stage(runnable(), augment=augment, **changes), 1) if "augment" in problem]
    assert len(told) == bool(said) and all(said in problem for problem in told)


def test_words_without_a_row_are_refused_wherever_they_are_read(tmp_path: Path) -> None:
    """Training, measuring and a pipeline's first step say it; AF-CLAP's own text tower is as long as the tokenizer."""
    words = {"<|endoftext|>": 0, "<unknown>": 1, **{f"w{number}": number for number in range(2, 12)}}
    file = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unknown>")).save(str(file))
    config = with_stage(runnable(), blend={"a": 1.0}, evaluation=("a",))
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    config = replace(config, data=replace(config.data, root=str(tmp_path), tokenizer=str(file)))

    def told(rows: int) -> list[bool]:
        sized = replace(config, model=replace(config.model, lm=replace(config.model.lm, vocab=rows)))
        contrastive = with_stage(sized, objective="contrastive")
        found = [*map(list, (missing_for_training(sized), missing_for_evaluation(sized), missing_at_the_head(sized)))]
        found.append(list(missing_for_training(contrastive)))
        problem = f"model.lm.vocab = {rows}: data.tokenizer has 12 words, a row each; set it to 12"
        return [problem in problems for problems in found]

    assert told(11) == [True, True, True, False] and told(12) == [False] * 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there Transformer Engine may be had")
def test_layers_that_this_machine_cannot_compute_are_refused(tmp_path: Path) -> None:
    config = replace(runnable(), layers="te")
    assert not [problem for problem in check(config, 1) if "layers" in problem], "a dry run is of another machine"
    for refuse in (lambda: validate(config, 1), lambda: validate_evaluation(config)):
        with pytest.raises(ConfigError) as caught:
            refuse()
        told = [problem for problem in caught.value.problems if problem.startswith("layers")]
        assert told == [
            "layers = te: Transformer Engine needs a GPU, and there is none; set layers to torch, or leave it out"
        ]


def test_compiled_layers_do_not_overlap_their_collectives() -> None:
    together = runnable(distributed_optimizer=True, overlap=True)
    (problem,) = check(replace(together, compile=True), 2)
    assert problem.startswith("compile = true with parallel.overlap = true: ") and "set one to false" in problem
    apart = runnable(distributed_optimizer=True)
    assert check(together, 2) == check(replace(apart, compile=True), 2) == []


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError) as caught:
        validate(replace(runnable(), compile=True), 1)
    assert (
        "compile = true: torch.compile needs no-such-compiler on the path; install one, or set compile to false"
        in caught.value.problems
    )


def checkpoint(folder: Path, **parts: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(json.dumps({"resume": {"step": 1}, "parts": parts}))
    return folder


def problems_of(config: Config) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(config, 1)
    return [problem for problem in caught.value.problems if not problem.startswith("data.")]


def test_an_entry_must_be_a_checkpoint_that_holds_the_part(tmp_path: Path) -> None:
    def entry(**origins: Path) -> list[str]:
        return problems_of(with_stage(runnable(), entry={part: str(origin) for part, origin in origins.items()}))

    (problem,) = entry(encoder=tmp_path)
    assert problem.startswith(f"curriculum.stage.entry.encoder = {tmp_path}: is no checkpoint")
    good = checkpoint(tmp_path / "run" / "step_00000300", lm=".", rows=".")
    (problem,) = entry(lm=tmp_path / "run")
    assert problem.endswith(f"name the one inside, {good}")
    (problem,) = entry(lm=good, xattn=good)
    assert "curriculum.stage.entry.xattn" in problem and "holds lm, rows but no xattn" in problem
    assert len(entry(all=good)) == 3  # encoder, transform and xattn
    whole = dict.fromkeys(("encoder", "transform", "xattn"), ".")
    assert entry(all=checkpoint(tmp_path / "other", **whole, lm=str(good), rows=str(good))) == []
    (problem,) = entry(lm=checkpoint(tmp_path / "moved", lm="../gone"))
    assert "the weights of lm lie in" in problem and "which is gone" in problem
    (good / "checkpoint.json").write_text("{")
    (problem,) = entry(lm=good)
    assert "cannot be read" in problem


def test_a_stage_that_goes_on_needs_its_own_checkpoint_and_no_entry(tmp_path: Path) -> None:
    config = replace(with_stage(runnable(), entry={"lm": "gone"}), output=str(tmp_path))
    folder = config.stage_folder("stage") / "checkpoints"
    own = checkpoint(folder / "step_1", encoder=".", transform=".", rows=".", xattn=".", lm=".")
    (folder / "latest").write_text("step_1")
    assert problems_of(config) == []
    shutil.copytree(own, good_before := tmp_path / "before")
    (own / "checkpoint.json").unlink()
    (problem,) = problems_of(config)
    assert problem.startswith("the stage's own checkpoint: no checkpoint in") and "names step_1, which" in problem
    shutil.copytree(good_before, folder / "step_00000000")
    assert problems_of(config) == [], "the one before is used"


def test_evaluation_sets_must_be_there_before_training(tmp_path: Path) -> None:
    config = with_stage(runnable(), evaluation=("a",), blend={"b": 1.0})
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "b.jsonl").touch()
    config = replace(config, data=replace(config.data, root=str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json")))
    with pytest.raises(ConfigError, match=r"1 problem\n  - data.datasets.a.manifest = a.jsonl: not in"):
        validate(config, 1)
    (tmp_path / "a.jsonl").touch()
    validate(config, 1)


def test_an_evaluation_needs_its_sets_and_its_checkpoint_alone(tmp_path: Path) -> None:
    data = replace(runnable().data, root=str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json"))
    config = replace(runnable(tensor=4), data=data, output=str(tmp_path / "runs"))
    config = with_stage(config, evaluation=("a",), entry={"all": "gone"})
    with pytest.raises(ConfigError) as caught:
        validate_evaluation(config)
    assert [problem.split(":")[0].split(" =")[0] for problem in caught.value.problems] == [
        "data.datasets.a.manifest",
        "data.tokenizer",
        "stage",
    ]
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "a.jsonl").touch()
    folder = config.stage_folder("stage") / "checkpoints"
    checkpoint(folder / "step_1", encoder=".", transform=".", rows=".", xattn=".", lm=".")
    (folder / "latest").write_text("step_1")
    validate_evaluation(config)  # no data set b, no entry, and no 4 processes to share the model
    with pytest.raises(ConfigError, match="its objective is mine:Own; name one with answer or contrastive"):
        validate_evaluation(with_stage(config, objective="mine:Own"))
    with pytest.raises(ConfigError, match="evaluation: 'c' is not in"):
        validate_evaluation(with_stage(config, evaluation=("a", "c")))
    with pytest.raises(ConfigError, match="evaluation is empty"):
        validate_evaluation(with_stage(config, evaluation=()))
    with pytest.raises(ConfigError, match=r"model\.transform\.heads = 5 does not divide"):
        validate_evaluation(with_model(config, "transform", heads=5))


def test_a_url_is_asked_for_its_files(tmp_path: Path) -> None:
    config = with_stage(runnable(), evaluation=("a",), blend={"b": 1.0})
    for root, expected in (("memory://nothing", "not in memory://nothing"), ("nix://x", "data.root = nix://x: ")):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            validate(replace(config, data=replace(config.data, root=root)), 1)


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


def run_tool(tool: str, file: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    # An address that no process group could be made at: the message must come without one.
    environment = os.environ | {
        "WORLD_SIZE": "6",
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), "--config", str(file), *overrides],
        cwd=file.parent,  # not where `make demo` leaves a data/
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_tool_stops_with_one_message_before_any_process_group(tmp_path: Path) -> None:
    config = with_model(with_stage(runnable(tensor=4), entry={"lm": "gone"}), "cross_attention", interval=0)
    (tmp_path / "bad.yaml").write_text(to_yaml(config))
    done = run_tool("pretrain_af.py", tmp_path / "bad.yaml", "seed=one", "curriculum.stage.stps=3")
    assert done.returncode == 2
    keys = ("parallel.tensor", "model.cross_attention.interval", "data.root", "data.tokenizer", "entry.lm")
    for key in (*keys, "seed (command line)", "did you mean curriculum.stage.steps?"):
        assert key in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_evaluation_stops_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(to_yaml(with_stage(runnable(), evaluation=("aa",))))
    done = run_tool("evaluate.py", tmp_path / "bad.yaml", "seed=one")
    assert done.returncode == 2
    for key in ("curriculum.stage.evaluation: 'aa'", "data.root", "data.tokenizer", "seed (command line)"):
        assert done.stderr.count(key) == 1
    assert "Traceback" not in done.stderr
