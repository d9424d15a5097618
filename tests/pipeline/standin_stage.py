"""Stands in for the training of a stage where a test is about the curriculum: a checkpoint for each step.

    python standin_stage.py --config FILE stage=NAME     with STANDIN_<NAME>=fail|stop|hopeless to end after the first
"""

import json
import os
import sys
from pathlib import Path

from megatron_af.config.loading import load_config, to_yaml
from megatron_af.evaluate.answered import Answered, write_answered
from megatron_af.runs.benchmarks import name_of
from megatron_af.runs.paths import LATEST, MANIFEST, SETTINGS, latest, read_resume
from megatron_af.runs.results import bind_results

_, _, file, override = sys.argv
config = load_config(file, [override])
stage, folder = config.stage, config.stage_folder(config.stage)
steps = config.curriculum[stage].steps
parts = dict.fromkeys(("encoder", "transform", "rows", "xattn", "lm"), ".")
trouble = os.environ.get(f"STANDIN_{stage.upper()}", "")
newest = latest(folder / "checkpoints")
done = read_resume(newest)["step"] if newest else 0
for step in range(done + 1, steps + 1):
    print(f"step {step}/{steps} | loss {1 / step:.4f}", flush=True)
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST).write_text(json.dumps({"resume": {"step": step}, "parts": parts}))
    (checkpoint / SETTINGS).write_text(to_yaml(config))
    # Weights follow from the settings, as they do in training.
    (checkpoint / "weights").write_text(f"{stage} {config.seed} {config.curriculum[stage].max_windows} {step}")
    (folder / "checkpoints" / LATEST).write_text(checkpoint.name)
    if trouble and step == 1:
        print(f"RuntimeError: {trouble}", flush=True)
        sys.exit({"stop": 3, "hopeless": 42}.get(trouble, 1))
Path(folder / "result.json").write_text(json.dumps({"step": float(steps), "loss": 0.5}))
if config.curriculum[stage].evaluation:
    scores = {"skills": {"what": {"audio": 60.0, "n": 4}}, "overall": {"audio": 60.0, "n": 4}}
    Path(folder / "hearing.json").write_text(json.dumps(dict.fromkeys(config.curriculum[stage].evaluation, scores)))
    measured = [folder / "hearing.json"]
    for suite in map(name_of, config.curriculum[stage].suites):
        measured += [folder / f"suite-{suite}.json", folder / f"suite-{suite}.parquet"]
        measured[-2].write_text(json.dumps({"n": 1, "exact": 100.0, "intervals": {"exact": [90.0, 100.0]}}))
        one = Answered(id="1", group="a", skill="", prompt="?", references=("a",), answers=("a",))
        write_answered(measured[-1], [one], {"exact": [1.0]})
    bind_results(config, measured)
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "attention-text-1.png").write_bytes(b"")
