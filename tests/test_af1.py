"""Audio Flamingo 1 at toy size: its own curriculum from converted OPT and ClapCap on, with examples and dialogues."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_af.audio.encoder import encoder_of
from megatron_af.config import Config, DatasetConfig
from megatron_af.config.loading import CONFIGS, load_config, to_yaml
from megatron_af.runs.paths import latest
from megatron_af.runs.pointers import source_of
from tests.data.toy import write_tone
from tests.decoder.opt_folder import transformers_model
from tests.text.opt_files import write_opt
from tests.train.toy_run import tool_run

pytestmark = pytest.mark.slow

STAGES = ("pretrain", "four_shot", "chat")
"""The line that leads to the chat model; ``foundation`` is ``four_shot`` with more examples a row."""
RATE = 44_100


def toy_af1(folder: Path) -> Config:
    """The shipped run with small sizes, three small data sets, and two steps a stage."""
    config = load_config(CONFIGS / "af1.yaml", [f"output={folder / 'runs'}"])
    model = config.model
    encoder = dataclasses.replace(
        model.encoder, embed_dim=8, depths=(1, 1), heads=(1, 2), patch_size=16, classes=0, vector_dim=32
    )
    lm = dataclasses.replace(model.lm, hidden=32, layers=2, heads=4, kv_heads=4, ffn=64)
    blends = {
        "pretrain": {"single": 1.0},
        "four_shot": {"single": 1.0, "knn": 1.0},
        "chat": {"chat": 1.0},
    }
    stages = {
        name: dataclasses.replace(
            config.curriculum[name],
            blend=blend,
            global_batch_samples=2,
            micro_batch_samples=2,
            passes=0.0,
            steps=2,
            evaluation=(),
            exit_gate={},
        )
        for name, blend in blends.items()
    }
    datasets = {
        name: DatasetConfig(manifest=f"{name}.jsonl", task_prefix_probability=0.5) for name in ("single", "knn", "chat")
    }
    return dataclasses.replace(
        config,
        precision="fp32",
        model=dataclasses.replace(
            model,
            encoder=encoder,
            lm=lm,
            transform=dataclasses.replace(model.transform, layers=1, heads=2, ffn=48),
            cross_attention=dataclasses.replace(model.cross_attention, heads=2, head_dim=8),
        ),
        data=dataclasses.replace(
            config.data, root=str(folder / "data"), tokenizer=str(folder / "opt"), datasets=datasets
        ),
        curriculum=stages,
        launch=dataclasses.replace(config.launch, processes_per_node=1),
        registry=dataclasses.replace(config.registry, gates=""),
        tracking=dataclasses.replace(config.tracking, enabled=False),
        checkpoint=dataclasses.replace(config.checkpoint, asynchronous=False),
    )


def write_data(root: Path) -> None:
    """Recordings of less than one window to several, and rows of every kind."""
    clips = []
    for i in range(6):
        seconds = 2.0 + 2.5 * i
        write_tone(root / f"{i}.wav", seconds, i, RATE)
        clips.append({"path": f"{i}.wav", "duration": seconds})
    questions = [{"prompt": f"what is sound {i}?", "output": f"noise {i}"} for i in range(6)]
    rows: dict[str, list[dict[str, Any]]] = {"single": [], "knn": [], "chat": []}
    for i in range(6):
        own = {"id": str(i), "task": "listening"}
        rows["single"].append({**own, "clips": clips[i : i + 1], "questions": questions[i : i + 1]})
        around = [(i + 2) % 6, (i + 1) % 6, i]
        examples = {"clips": [clips[j] for j in around], "questions": [questions[j] for j in around]}
        rows["knn"].append({**own, **examples, "template": "interleaved"})
        rows["chat"].append({**own, "clips": clips[i : i + 1], "questions": questions[:2], "template": "dialogue"})
    for name, lines in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


def write_published(folder: Path, config: Config) -> None:
    """OPT's folder, and ClapCap's file."""
    (folder / "opt").mkdir()
    write_opt(folder / "opt")
    transformers_model(config.model.lm).save_pretrained(folder / "opt")
    state = encoder_of(config.model.encoder).build(config.model.front_end).state_dict()
    prefix = {True: "clap.", False: "clap.base.htsat."}
    named = {prefix[name.startswith("projection.")] + name: tensor for name, tensor in state.items()}
    torch.save({"model": named}, folder / "clapcap.pth")


def test_its_curriculum_runs_from_converted_weights_to_chat(tmp_path: Path) -> None:
    config = toy_af1(tmp_path)
    write_data(tmp_path / "data")
    write_published(tmp_path, config)
    top = tmp_path / "af1.yaml"
    top.write_text(to_yaml(config))
    converted = tmp_path / "runs/converted/af1"
    for source, part in ((tmp_path / "opt", "lm"), (tmp_path / "clapcap.pth", "encoder")):
        convert = ("--config", str(top), "--from", str(source), "--to", str(converted / part))
        tool_run("tools/convert_checkpoint.py", *convert)
    tool_run("tools/run_curriculum.py", "--config", str(top))

    found = {stage: latest(config.stage_folder(stage) / "checkpoints") for stage in STAGES}
    of = {stage: {part: source_of(path, part) for part in ("encoder", "lm")} for stage, path in found.items() if path}
    assert list(of) == list(STAGES)
    assert all(parts["encoder"] == latest(converted / "encoder") for parts in of.values()), "ClapCap is never trained"
    assert of["pretrain"]["lm"] == latest(converted / "lm"), "nor is OPT before fine-tuning"
    assert [of[stage]["lm"] for stage in STAGES[1:]] == [found[stage] for stage in STAGES[1:]], "which trains it whole"
    for stage in STAGES:
        result = json.loads((config.stage_folder(stage) / "result.json").read_text())
        assert math.isfinite(result["loss"]) and result["loss"] > 0
