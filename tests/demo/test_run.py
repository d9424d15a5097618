"""`make demo` in its two-minute form: the same path from sources to the table, on real processes.

What it learns in these few steps is nothing; `make demo` itself shows that the model hears.
"""

import json
import time
from pathlib import Path

import pytest

from megatron_af.config import ScenesConfig
from megatron_af.config.loading import load_config
from megatron_af.data.rows import Manifest
from megatron_af.demo import run
from megatron_af.demo.questions import SKILLS
from megatron_af.demo.run import run_demo
from megatron_af.pipeline.job import StepFailed
from megatron_af.progress import Progress
from megatron_af.runs.paths import latest
from megatron_af.runs.pointers import source_of

CONFIG = Path(__file__).parents[2] / "configs" / "demo_test.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_demo_runs_whole_and_resumes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides = [f"output={tmp_path / 'runs'}", f"data.root={tmp_path / 'data'}"]
    began = time.monotonic()
    summary = run_demo(str(CONFIG), overrides)
    whole = time.monotonic() - began
    folder = tmp_path / "runs" / "demo_test"
    assert json.loads((folder / "summary.json").read_text()) == summary
    report = (folder / "report.html").read_text()
    assert "long: loss, nats per supervised token" in report and "Where answers look: test_long" in report
    assert set(summary["skills"]) <= set(SKILLS) and len(summary["skills"]) >= 6
    for score in [*summary["skills"].values(), summary["overall"]]:
        assert {"audio", "exchanged", "majority", "n"} <= score.keys()
    assert {"temporal: order", "temporal: referring"} <= set(summary["sets"]["test_skills"]["skills"])
    assert "synthesised" in summary["sources"]
    assert {"prepare", "lm", "clap", "align", "tune", "long", "training"} == summary["seconds"].keys()
    assert summary["seconds"]["training"] > 5
    shown = capfd.readouterr().out
    assert "exchanged" in shown and "held-out scenes: test_skills" in shown and "│ temporal:" in shown
    for line in ("recordings 1/1 100.0%", "stage lm 0/4 0.0% | eta", "stage align 4/4 100.0% | loss", "questions long"):
        assert line in shown, "it says how far it is where there is no terminal"

    started = time.monotonic()
    assert run_demo(str(CONFIG), overrides) == summary  # everything is there: nothing runs again
    assert time.monotonic() - started < whole / 5

    sorted((tmp_path / "data" / "test").glob("*.flac"))[-1].unlink()
    with pytest.raises(StepFailed, match=r"(?s)evaluate-long: exit code 2, which no restart mends.*does not exist"):
        run_demo(str(CONFIG), [*overrides, "curriculum.long.evaluation=[test]"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_audio_flamingo_1_runs_its_curriculum(tmp_path: Path) -> None:
    """Pre-training, fine-tuning with rows of 1, 4 and 8 clips mixed by weight, chat; OPT trains from fine-tuning on."""
    overrides = [f"output={tmp_path / 'runs'}", f"data.root={tmp_path / 'data'}"]
    summary = run_demo(str(CONFIG.with_name("demo_af1_test.yaml")), overrides)
    assert {"listing", "order"} <= set(summary["sets"]["test_dialogue"]["skills"])
    assert set(summary["sets"]["test_dialogue"]["turns"]) == {"1", "2", "3", "4"}
    folder = tmp_path / "runs" / "demo_af1_test"
    stages = ("lm", "clap", "pretrain", "foundation", "chat")
    found = {stage: latest(folder / stage / "checkpoints") for stage in stages}
    of = {stage: {part: source_of(path, part) for part in ("encoder", "lm")} for stage, path in found.items()
          if path and stage not in ("lm", "clap")}  # fmt: skip
    assert all(of[stage]["encoder"] == found["clap"] for stage in ("pretrain", "foundation", "chat"))
    assert of["pretrain"]["lm"] == found["lm"] and of["foundation"]["lm"] == found["foundation"]
    assert of["chat"]["lm"] == found["chat"]
    for examples in (3, 7):
        rows = list(Manifest(tmp_path / "data" / f"train_knn_{examples + 1}.jsonl"))
        assert rows and {len(row.clips) for row in rows} == {examples + 1}
    learnt = json.loads((folder / "foundation" / "result.json").read_text())
    blend = ("scenes", "scenes_knn_4", "scenes_knn_8")
    assert {name for name in learnt if name.startswith("loss/")} <= {f"loss/{name}" for name in blend}


def test_scenes_that_are_made_again_are_not_taken_for_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(CONFIG, [f"data.root={tmp_path}"])
    (tmp_path / "prepared.json").write_text('{"seconds": 1.0}')  # of a version that wrote no settings

    def dies(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "prepare_scenes", dies)
    with pytest.raises(KeyboardInterrupt), Progress() as progress:
        run.prepare_demo(config, progress)
    assert not (tmp_path / "prepared.json").exists()


@pytest.mark.parametrize("name", ["demo", "demo_long"])
def test_shipped_demo_is_large_enough(name: str) -> None:
    config = load_config(CONFIG.with_name(f"{name}.yaml"))
    assert isinstance(config.scenes, ScenesConfig) and not config.scenes.offline
    assert config.scenes.sets["train"].scenes >= 2_000
    assert config.scenes.sets["test"].part == "test"
    assert list(config.curriculum) == ["lm", "clap", "align", "tune", "long"]
    assert config.launch.processes_per_node == 2
