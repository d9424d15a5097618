"""Stands in for the training of a stage where a test is about the curriculum: two steps, a checkpoint each.

    python standin_stage.py --config FILE stage=NAME     with STANDIN_<NAME>=fail | stop to end after the first
"""

import json
import os
import sys
from pathlib import Path

from megatron_af.config.loading import load_config
from megatron_af.runs.paths import LATEST, MANIFEST, latest, read_resume

_, _, file, override = sys.argv
config = load_config(file, [override])
stage, folder = config.stage, config.stage_folder(config.stage)
trouble = os.environ.get(f"STANDIN_{stage.upper()}", "")
newest = latest(folder / "checkpoints")
done = read_resume(newest)["step"] if newest else 0
for step in range(done + 1, 3):
    print(f"step {step}/2 | loss {1 / step:.4f}", flush=True)
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST).write_text(json.dumps({"resume": {"step": step}, "parts": {}}))
    # Weights follow from the settings, as they do in training.
    (checkpoint / "weights").write_text(f"{stage} {config.seed} {config.curriculum[stage].steps} {step}")
    (folder / "checkpoints" / LATEST).write_text(checkpoint.name)
    if trouble and step == 1:
        print(f"RuntimeError: {trouble}", flush=True)
        sys.exit(3 if trouble == "stop" else 1)
Path(folder / "result.json").write_text(json.dumps({"step": 2.0, "loss": 0.5}))
if config.curriculum[stage].evaluation:
    scores = {"skills": {"what": {"audio": 60.0, "n": 4}}, "overall": {"audio": 60.0, "n": 4}}
    Path(folder / "hearing.json").write_text(json.dumps(dict.fromkeys(config.curriculum[stage].evaluation, scores)))
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "attention-text-1.png").write_bytes(b"")
