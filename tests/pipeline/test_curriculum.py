"""Which stages run, which do not, and what happens to the ones that fail."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import (
    BoundsConfig,
    Config,
    ConfigError,
    DataConfig,
    DatasetConfig,
    LaunchConfig,
    NeighboursConfig,
    RetrievalConfig,
    StageConfig,
    TrackingConfig,
)
from megatron_af.pipeline.curriculum import plan, run_curriculum
from megatron_af.pipeline.executor import ThisMachine
from megatron_af.pipeline.graph import StepSpec
from megatron_af.pipeline.job import Job, StepFailed
from megatron_af.pipeline.records import RunFolder
from megatron_af.pipeline.stages import ExitGateFailed
from megatron_af.runs.paths import latest
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.records import StageRecord
from megatron_af.runs.results import Results
from megatron_af.tracking.runs import stage_spool
from megatron_af.tracking.spool import read_spool
from megatron_af.tracking.store import open_client

pytestmark = pytest.mark.slow

STANDIN = Path(__file__).with_name("standin_stage.py")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    def job(place: ThisMachine, spec: StepSpec, name: str, argv: tuple[str, ...]) -> Job:
        return Job(name=name, argv=(str(STANDIN), *argv[1:4]), distributed=False, max_restarts=0)

    monkeypatch.setattr(ThisMachine, "job", job)
    (tmp_path / "text.jsonl").write_text("{}\n")
    (tmp_path / "scenes.jsonl").write_text("{}\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    common = {"steps": 2, "trainable": ("added_rows",), "global_batch_samples": 1, "micro_batch_samples": 1}
    return Config(
        name="demo",
        output=str(tmp_path / "runs"),
        data=DataConfig(
            root=str(tmp_path),
            tokenizer=str(tmp_path / "tokenizer.json"),
            datasets={name: DatasetConfig(manifest=f"{name}.jsonl") for name in ("text", "scenes")},
        ),
        curriculum={
            "lm": StageConfig(blend={"text": 1.0}, **common),  # type: ignore[arg-type]
            "align": StageConfig(blend={"scenes": 1.0}, entry={"lm": "lm"}, **common),  # type: ignore[arg-type]
            "tune": StageConfig(blend={"scenes": 1.0}, entry={"all": "align"}, **common),  # type: ignore[arg-type]
        },
        tracking=TrackingConfig(enabled=False),
    )


def with_stage(config: Config, stage: str, **changes: object) -> Config:
    changed = replace(config.curriculum[stage], **changes)  # type: ignore[arg-type]
    return replace(config, curriculum={**config.curriculum, stage: changed})


def actions(config: Config, **chosen: str) -> dict[str, str]:
    return {step.stage: step.action for step in plan(config, **chosen)}


def run(config: Config, said: list[str] | None = None, **chosen: str) -> list[str]:
    """Run and say which stages were trained."""
    said = [] if said is None else said
    run_curriculum(config, say=said.append, **chosen)
    steps = [line.split("] ")[0].removeprefix("[") for line in said if "] step " in line]
    return [name for name in dict.fromkeys(steps) if name in config.curriculum]


def test_every_stage_once(config: Config) -> None:
    assert actions(config) == {"lm": "train", "align": "train", "tune": "train"}
    assert run(config) == ["lm", "align", "tune"]
    assert actions(config) == {"lm": "skip", "align": "skip", "tune": "skip"}
    assert run(config) == []
    record = StageRecord.load(config.stage_folder("tune"))
    assert record is not None and record.done and record.digest.startswith("sha256:")
    log = Path(config.output) / "demo/pipeline/logs/tune.log"
    assert log.read_text().startswith("[tune] train: not trained yet\n[tune] step 1/2 | loss 1.0000\n")


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        (lambda c: with_stage(c, "align", max_windows=2), ["align", "tune"]),
        (lambda c: with_stage(c, "tune", max_windows=2), ["tune"]),
        (lambda c: replace(c, seed=5), ["lm", "align", "tune"]),
        (lambda c: replace(c, log_every_steps=3), []),
    ],
    ids=["a stage", "the last stage", "seed", "logging"],
)
def test_what_changed_and_what_stands_on_it_is_trained_again(
    config: Config, change: Callable[[Config], Config], trained: list[str]
) -> None:
    run(config)
    assert run(change(config)) == trained


def test_another_evaluation_is_measured_without_training(config: Config) -> None:
    run(config)
    measured = with_stage(config, "tune", evaluation=("text",))
    assert run(measured) == []
    record = StageRecord.load(config.stage_folder("tune"))
    assert record is not None and " on text (sha256:" in record.evaluated
    scores = config.stage_folder("tune") / "hearing.json"
    assert scores.exists()

    first = scores.stat().st_mtime_ns
    assert run(measured) == [] and scores.stat().st_mtime_ns == first, "the same questions are not asked twice"
    run(replace(measured, evaluation=replace(config.evaluation, max_answer_tokens=3)))
    assert scores.stat().st_mtime_ns != first
    scores.unlink()
    assert run(measured) == [] and scores.exists(), "what was measured is gone"
    by_hand = RunFolder(config).write_config(with_stage(config, "tune", evaluation=("scenes",)))
    subprocess.run([sys.executable, STANDIN, "--config", by_hand, "stage=tune"], check=True)
    assert "scenes" in scores.read_text()
    assert run(measured) == [] and "scenes" not in scores.read_text(), "what lies there is of other questions"


def test_what_was_trained_on_by_hand_is_measured_anew(config: Config) -> None:
    config = with_stage(config, "lm", evaluation=("text",))
    run(config, only="lm")
    longer = with_stage(config, "lm", steps=3)
    file = RunFolder(longer).write_config(with_stage(longer, "lm", evaluation=()))
    subprocess.run([sys.executable, STANDIN, "--config", file, "stage=lm"], check=True)
    assert "step_00000003 was written since it was done" in plan(longer, only="lm")[0].why
    assert run(longer, only="lm") == [], "there is no step left"
    record = StageRecord.load(config.stage_folder("lm"))
    newest = latest(config.stage_folder("lm") / "checkpoints")
    assert record is not None and newest is not None
    assert (record.checkpoint, record.digest) == (newest.name, checkpoint_digest(newest))
    assert Results.load(config.stage_folder("lm"), record.digest).metrics["text/overall/audio"] == 60.0
    assert actions(longer, only="lm") == {"lm": "skip"}


def test_changed_data_trains_again_and_keeps_the_old_result_beside(config: Config, tmp_path: Path) -> None:
    run(config)
    old = (config.stage_folder("lm") / "stage.json").read_text()
    (tmp_path / "text.jsonl").write_text("{}\n{}\n")
    steps = plan(config)
    assert steps[0].why == "changed: data/text"
    assert [step.why for step in steps[1:]] == ["after lm", "after align"]
    # The stand-in's weights do not depend on its data: the same checkpoint comes out, and nothing else is trained.
    assert run(config) == ["lm"]
    assert (config.stage_folder("lm.replaced") / "stage.json").read_text() == old


def test_data_that_lies_elsewhere_now_are_the_same_data(config: Config, tmp_path: Path) -> None:
    run(config)
    record = StageRecord.load(config.stage_folder("lm"))
    (tmp_path / "moved").mkdir()
    for name in ("text.jsonl", "scenes.jsonl", "tokenizer.json"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    data = replace(config.data, root=str(tmp_path / "moved"), tokenizer=str(tmp_path / "moved/tokenizer.json"))
    moved = replace(config, data=data)
    assert actions(moved) == {"lm": "skip", "align": "skip", "tune": "skip"}
    longer = with_stage(moved, "lm", steps=3)
    assert actions(longer, only="lm") == {"lm": "resume"} and run(longer, only="lm") == ["lm"]
    assert StageRecord.load(config.stage_folder("lm")).inputs == record.inputs  # type: ignore[union-attr]
    assert plan(replace(moved, seed=5))[0].why == "changed: config"
    (tmp_path / "moved/tokenizer.json").write_text('{"others": 1}')
    assert plan(moved)[0].why == "changed: config, tokenizer"


def test_a_failed_stage_resumes(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_ALIGN", "fail")
    with pytest.raises(StepFailed, match=r"align: exit code 1, after 0 restarts: RuntimeError: fail"):
        run(config)
    assert actions(config) == {"lm": "skip", "align": "resume", "tune": "train"}
    monkeypatch.delenv("STANDIN_ALIGN")
    said: list[str] = []
    assert run(config, said) == ["align", "tune"]
    assert [line for line in said if line.startswith("[align] step")] == ["[align] step 2/2 | loss 0.5000"]


def test_a_stopped_stage_says_so(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_LM", "stop")
    with pytest.raises(StepFailed, match="lm: was asked to stop"):
        run(config)


def test_a_stage_that_fails_again_in_the_same_way_is_not_said_to_resume(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_LM", "hopeless")
    with pytest.raises(StepFailed, match="exit code 42, which no restart mends") as error:
        run(config)
    assert error.value.give_up


def test_more_steps_extend_a_stage_and_train_what_stands_on_it(config: Config) -> None:
    run(config)
    longer = with_stage(config, "align", steps=3)
    assert plan(longer)[1].why == "has 2 of 3 steps" and actions(longer)["tune"] == "train"
    said: list[str] = []
    assert run(longer, said) == ["align", "tune"]
    assert [line for line in said if line.startswith("[align] step")] == ["[align] step 3/3 | loss 0.3333"]
    assert actions(config)["align"] == "skip", "what was trained longer is not thrown away"
    assert "2 steps were asked for" in plan(config)[1].why


def test_a_checkpoint_that_is_gone_is_trained_again(config: Config) -> None:
    run(config)
    shutil.rmtree(config.stage_folder("tune") / "checkpoints")
    assert (plan(config)[2].action, plan(config)[2].why) == ("train", "its checkpoint step_00000002 is gone")
    (config.stage_folder("align") / "result.json").unlink()
    assert plan(config)[1].why == "has its last checkpoint, but not its end"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"lm": "nowhere"}, "entry.lm = nowhere: neither a stage nor an existing checkpoint"),
        ({"lm": "{root}"}, "is no checkpoint"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    config: Config, tmp_path: Path, entry: dict[str, str], words: str
) -> None:
    wrong = with_stage(config, "tune", entry={part: origin.format(root=tmp_path) for part, origin in entry.items()})
    assert [step.action for step in plan(wrong)] == ["train", "train", "blocked"]
    assert words in plan(wrong)[2].why
    with pytest.raises(ConfigError, match="cannot run") as error:
        run(wrong)
    assert words in str(error.value) and not config.stage_folder("lm").exists(), "before anything is trained"


def test_a_dry_run_says_what_is_wrong_with_files_that_it_cannot_read(config: Config) -> None:
    run(config, only="lm")
    latest_one = config.stage_folder("lm") / "checkpoints/latest"
    latest_one.write_text("step_00000009")
    (step,) = plan(config, only="lm")
    assert step.action == "resume", "from the one before"
    (step,) = plan(replace(config, data=replace(config.data, root="s3x://bucket")), only="align")
    assert step.action == "blocked" and "data.root = s3x://bucket: Protocol not known" in step.why


def test_a_dry_run_refuses_a_checkpoint_that_no_run_can_go_on_from(config: Config) -> None:
    run(config, only="lm")
    (config.stage_folder("lm") / "stage.json").unlink()
    (step,) = plan(with_stage(config, "lm", max_windows=2), only="lm")
    assert step.action == "blocked" and "curriculum.lm.max_windows: was 3, now 2" in step.why


def test_a_dry_run_refuses_ranks_that_cannot_share_the_recorded_batch(config: Config) -> None:
    tokens = config.sample_tokens(config.curriculum["lm"])
    config = replace(config, curriculum={"lm": config.curriculum["lm"]})
    budget = with_stage(config, "lm", batch_tokens=4 * tokens, global_batch_samples=3)  # as resolved on three ranks
    run(budget, only="lm")
    longer = with_stage(budget, "lm", steps=3)
    assert actions(longer, only="lm") == {"lm": "resume"}
    (step,) = plan(replace(longer, launch=LaunchConfig(processes_per_node=2)), only="lm")
    assert step.action == "blocked" and "began with 3 samples a step, which 2 processes cannot share" in step.why


def test_from_and_only(config: Config) -> None:
    assert run(config, only="lm") == ["lm"]
    assert run(config, start="align") == ["align", "tune"]
    assert actions(config, start="tune") == {"tune": "skip"}


def test_an_unknown_stage_and_a_missing_parent_stop_before_anything_runs(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"no stage 'alin'; did you mean align\?"):
        run(config, start="alin")
    with pytest.raises(ConfigError, match=r"run stage=lm first"):
        run(config, only="align")
    assert not config.stage_folder("align").exists()
    (blocked,) = plan(config, only="align")
    assert blocked.action == "blocked" and "run stage=lm first" in blocked.why
    with pytest.raises(ConfigError, match=r"curriculum\.lm\.steps = 0: must be at least 1"):
        plan(with_stage(config, "lm", steps=0))


def test_rows_that_a_step_between_makes_need_not_be_there(config: Config) -> None:
    made = DatasetConfig(manifest="knn.jsonl", neighbours=NeighboursConfig(of="scenes", examples=1))
    datasets = {**config.data.datasets, "knn": made, "lost": DatasetConfig(manifest="lost.jsonl")}
    config = replace(config, data=replace(config.data, datasets=datasets))
    config = with_stage(config, "lm", objective="contrastive", blend={"scenes": 1.0}, global_batch_samples=2,
                        trainable=("*",))  # fmt: skip
    config = with_stage(config, "align", entry={"encoder": "lm"})
    config = replace(config, retrieval=RetrievalConfig(stage="lm"))
    assert actions(with_stage(config, "tune", blend={"scenes": 1.0, "knn": 0.5}))["tune"] == "train"
    *_, blocked = plan(with_stage(config, "tune", blend={"scenes": 1.0, "lost": 0.5}))
    assert blocked.action == "blocked" and "lost.jsonl: not in" in blocked.why
    run(config)
    (step,) = plan(with_stage(config, "tune", blend={"scenes": 1.0, "knn": 0.5}), only="tune")
    assert (step.action, step.why) == ("train", "after retrieval")


def test_a_stage_trained_by_hand_is_taken_on(config: Config) -> None:
    run(config, only="lm")
    (config.stage_folder("lm") / "stage.json").unlink()
    assert actions(config)["lm"] == "resume"
    assert run(config, only="lm") == [], "there is no step left"
    assert actions(config)["lm"] == "skip"


def test_an_exit_gate_holds_a_curriculum_back(config: Config) -> None:
    strict = with_stage(config, "lm", exit_gate={"loss": BoundsConfig(max=0.4)})
    with pytest.raises(ExitGateFailed, match=r"loss = 0\.5, expected at most 0\.4"):
        run(strict)
    assert latest(strict.stage_folder("lm") / "checkpoints") is not None
    assert actions(strict) == {"lm": "skip", "align": "train", "tune": "train"}
    with pytest.raises(ExitGateFailed):
        run(strict)  # not trained again, and still not good enough
    with pytest.raises(ConfigError, match=r"exit_gate\.los: nobody logs it; did you mean loss"):
        run(with_stage(config, "lm", exit_gate={"los": BoundsConfig(max=1.0)}))
    assert run(with_stage(config, "lm", exit_gate={"loss": BoundsConfig(max=0.6)})) == ["align", "tune"]


def test_the_curriculum_and_its_evaluation_are_in_mlflow(config: Config, store: str, tmp_path: Path) -> None:
    (Path(config.data.root) / "toy.csv").write_text("a,b,c\n")
    columns = "{audio: a, prompt: b, output: c}"
    (tmp_path / "toy.yaml").write_text(
        f"title: toy\nmetrics: [exact]\nsource: {{format: csv, path: toy.csv, columns: {columns}}}\n"
    )
    tracked = replace(
        with_stage(config, "lm", evaluation=("text",), suites=(str(tmp_path / "toy.yaml"),)),
        tracking=TrackingConfig(uri=store, system_metrics_seconds=0, linger_seconds=60),
    )
    run(tracked, only="lm")
    inputs = StageRecord.load(tracked.stage_folder("lm")).inputs  # type: ignore[union-attr]
    spooled = [record for record, _ in read_spool(stage_spool(tracked, "lm", inputs))]
    assert [(r["kind"], r.get("name") or r.get("to")) for r in spooled[1:]] == [
        ("table", "evaluation/text.json"),
        ("table", "evaluation/toy.json"),
        ("artifact", "pictures"),
        ("artifact", "evaluation"),
        ("artifact", "evaluation"),
    ]
    assert [Path(r["file"]).name for r in spooled if r.get("to") == "evaluation"] == [
        "suite-toy.json",
        "suite-toy.parquet",
    ]
    client = open_client(store)
    (parent,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert parent.info.run_name == "demo" and parent.info.status == "FINISHED"
    assert parent.data.metrics["lm/text/overall/audio"] == 60.0
    assert parent.data.metrics["lm/toy/exact"] == 100.0


def test_a_curriculum_that_fails_is_marked(config: Config, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_LM", "fail")
    tracking = TrackingConfig(uri=store, system_metrics_seconds=0, linger_seconds=60)
    with pytest.raises(StepFailed):
        run(replace(config, tracking=tracking))
    client = open_client(store)
    (parent,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert parent.info.status == "FAILED" and "lm: exit code 1" in parent.data.tags["ended"]
