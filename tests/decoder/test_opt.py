"""OPT computes what transformers computes, in every layout, and is used by the tools."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_af.config import LMConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.convert.language import LanguageFolder, hugging_face_tensors, load_language
from megatron_af.data.batch import TextRows
from megatron_af.decoder.lm import AudioLM
from megatron_af.decoder.opt import OPT
from tests.decoder.opt_folder import SIZES, SPLIT, transformers_model, write_opt_folder
from tests.decoder.toy import (
    HIDDEN,
    build_chunks,
    full_audio,
    plain_rows,
    relative_error,
    run_schedule,
    start_layout,
    toy_config,
)
from tests.distributed import run_distributed
from tests.text.opt_files import write_opt
from tests.train import toy_run as tool
from tests.train.toy_run import newest, tool_run

WORLDS = {
    "one process": {},
    "TP2": {"tensor": 2},
    "PP2": {"pipeline": 2},
    "TP2xPP2+SP": {"tensor": 2, "pipeline": 2, "sequence": True},
}


def packed_rows() -> TextRows:
    rows = plain_rows()
    segment_BS = rows.segment_BS.clone()
    segment_BS[:, SPLIT:] = 1
    return dataclasses.replace(rows, segment_BS=segment_BS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_opt_folder(tmp_path_factory.mktemp("opt"))


def logits_of(rank: int, world_size: int, folder: Path, layout: dict[str, Any]) -> list[Tensor]:
    checkpoint = LanguageFolder(folder, "opt")
    config = toy_config(lm=SIZES, **layout)
    checkpoint.check(config.model.lm)
    start_layout(config.parallel)
    chunks = build_chunks(config, added=0)
    load_language(chunks, checkpoint.source, config.model.lm)
    batches = [(plain_rows(), full_audio()), (packed_rows(), full_audio())]
    return run_schedule(chunks, batches, torch.zeros(0, HIDDEN), forward_only=True, forward=AudioLM.logits)


@pytest.mark.slow
@pytest.mark.parametrize("layout", WORLDS.values(), ids=WORLDS)
def test_logits_are_those_of_transformers(folder: Path, layout: dict[str, Any]) -> None:
    """Of a packed row, each segment's are those of the segment alone: places are counted anew."""
    world = layout.get("tensor", 1) * layout.get("pipeline", 1)
    found = run_distributed(logits_of, world, folder, layout)[-1]
    for logits, expected in zip(found, ("logits.pt", "packed_logits.pt"), strict=True):
        assert relative_error(logits, torch.load(folder / expected)) < 1e-5


def back(rank: int, world_size: int, folder: Path, layout: dict[str, Any]) -> dict[str, Tensor]:
    config = toy_config(lm=SIZES, **layout)
    start_layout(config.parallel)
    chunks = build_chunks(config, added=0)
    load_language(chunks, LanguageFolder(folder, "opt").source, config.model.lm)
    return {name: tensor.clone() for name, tensor in hugging_face_tensors(chunks, config.model.lm)}


@pytest.mark.slow
def test_what_was_read_is_written_back_to_the_bit(folder: Path) -> None:
    found, nothing, *_ = run_distributed(back, 4, folder, {"tensor": 2, "pipeline": 2})
    weights = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert found.keys() == weights.keys() and not nothing
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


STATED = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "ffn_dim": 8192,
    "vocab_size": 50_272,
    "word_embed_proj_dim": 2048,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "activation_function": "relu",
}
"""Of OPT-IML-MAX-1.3B's ``config.json``."""


def test_the_published_folder_is_what_audio_flamingo_1_says_of_it() -> None:
    said = load_config(CONFIGS / "model/af1.yaml", ["name=said"]).model.lm
    assert LMConfig(family="opt", **OPT.read_config(STATED)) == said
    assert LMConfig(family="opt", **OPT.read_config(OPT(said).write_config())) == said


@pytest.mark.parametrize(
    "variant",
    [
        {"do_layer_norm_before": False},
        {"word_embed_proj_dim": 512},
        {"activation_function": "gelu"},
        {"enable_bias": False},
        {"layer_norm_elementwise_affine": False},
        {"_remove_final_layer_norm": True},
    ],
    ids=lambda variant: next(iter(variant)),
)
def test_a_variant_that_is_not_computed_is_refused(variant: dict[str, Any]) -> None:
    (key,) = variant
    with pytest.raises(ValueError, match=f"{key} = .* is not supported"):
        OPT.read_config(STATED | variant)


def test_grouped_queries_are_a_problem() -> None:
    (problem,) = OPT(LMConfig(family="opt", heads=32, kv_heads=2)).problems()
    assert problem.endswith("set it to model.lm.heads = 32")
    assert not list(OPT(LMConfig(family="opt", heads=32, kv_heads=32)).problems())


@pytest.mark.slow
def test_a_folder_of_other_places_is_another_model(folder: Path) -> None:
    """The table of learnt positions has a row for each place."""
    checkpoint = LanguageFolder(folder, "opt")
    longer = dataclasses.replace(checkpoint.lm_config, max_positions=256)
    with pytest.raises(ValueError, match=r"model\.lm\.max_positions = 256: the folder has 128"):
        checkpoint.check(longer)


run_folder = tool.run_folder
"""Recordings, and a YAML file whose language model is of Qwen2's family."""


@pytest.mark.slow
def test_the_tools_convert_train_and_measure_it(run_folder: Path) -> None:
    """From files as OPT's repositories have them, with Audio Flamingo 1's templates."""
    rows = (run_folder / "data/train.jsonl").read_text().splitlines(keepends=True)
    (run_folder / "data/heard.jsonl").write_text("".join(row for row in rows if json.loads(row)["clips"][:1]))
    top, published = run_folder / "tiny.yaml", run_folder / "published"
    top.write_text(top.read_text().replace("datasets:", "datasets:\n    heard: {manifest: heard.jsonl}"))
    published.mkdir()
    write_opt(published)
    lm = {"family": "opt", "heads": 4, "kv_heads": 4, "norm_eps": 1e-5, "vocab": 50_272}
    changes = [f"model.lm.{key}={value}" for key, value in lm.items()]
    changes += ["name=opt", f"data.tokenizer={published}", "data.text_style=af1", "curriculum.align.steps=2"]
    changes += ["curriculum.align.evaluation=[heard]", "curriculum.align.max_text_tokens=96"]
    transformers_model(load_config(top, changes).model.lm).save_pretrained(published)
    convert = ["tools/convert_checkpoint.py", "--config", str(top), "--from", str(published)]
    tool_run(*convert, "--to", str(run_folder / "converted"), *changes)
    changes.append(f"curriculum.align.entry={{lm: {newest(run_folder)}}}")
    assert len(tool.losses(tool.train(run_folder, *changes))) == 2
    tool_run("tools/evaluate.py", "--config", str(top), *changes)
    assert json.loads((run_folder / "runs/opt/align/hearing.json").read_text())["heard"]["overall"]["n"] > 0
