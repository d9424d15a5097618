"""Hugging Face Qwen2 folders load into any layout and compute what transformers computes."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_af.config import LMConfig
from megatron_af.convert.language import LanguageFolder, load_language, read_part
from megatron_af.decoder.lm import AudioLM
from megatron_af.decoder.qwen2 import Qwen2
from megatron_af.foreign import ForeignError
from megatron_af.parallel.global_state import Placement, placements
from tests.convert.qwen_folder import write_folder
from tests.decoder.opt_folder import transformers_model
from tests.decoder.toy import (
    ADDED,
    HIDDEN,
    VOCAB,
    build_chunks,
    full_audio,
    plain_rows,
    relative_error,
    run_schedule,
    single_process_lm,
    start_layout,
    toy_config,
)
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("qwen2"), tied=request.param)


def logits_of(rank: int, world_size: int, folder: Path, layout: dict[str, object]) -> list[Tensor]:
    checkpoint = LanguageFolder(folder)
    config = toy_config(lm={"tied": checkpoint.lm_config.tied}, **layout)
    checkpoint.check(config.model.lm)
    start_layout(config.parallel)
    chunks = build_chunks(config, added=0)
    load_language(chunks, checkpoint.source, config.model.lm)
    batch = [(plain_rows(), full_audio())] * 2
    rows = torch.zeros(0, HIDDEN)
    return run_schedule(chunks, batch, rows, forward_only=True, forward=AudioLM.logits)


def test_logits_are_those_of_transformers(folder):
    """In float32 to the last bit, through fresh gated blocks."""
    expected = torch.load(folder / "logits.pt")
    found, _ = run_distributed(logits_of, 1, folder, {})[0]
    assert torch.equal(found, expected), f"relative error {relative_error(found, expected)}"


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 2, "sequence": True},
        {"pipeline": 2, "virtual_pipeline": 2},
        {"tensor": 2, "pipeline": 2},
    ],
    ids=["TP2+SP", "PP2xVPP2", "TP2xPP2"],
)
def test_a_folder_loads_into_any_layout(folder, layout):
    world = layout.get("tensor", 1) * layout.get("pipeline", 1)
    found, _ = run_distributed(logits_of, world, folder, layout)[-1]
    assert relative_error(found, torch.load(folder / "logits.pt")) < 1e-5


def fresh_gates(rank: int, world_size: int) -> None:
    rows, added = plain_rows(), torch.randn(ADDED, HIDDEN)
    bare = toy_config(cross_attention={"interval": 5})
    assert not any("xattn" in name for name, _ in single_process_lm(bare).named_parameters())
    without = build_chunks(bare)[0].logits(rows, full_audio(), added)
    with_blocks = build_chunks(toy_config(cross_attention={"interval": 1}))[0]
    assert torch.equal(with_blocks.logits(rows, full_audio(), added), without)


def test_fresh_gated_blocks_leave_the_language_model_as_it_is():
    run_distributed(fresh_gates, 1)


class Recorder:
    """A source that notes how many elements are read of each tensor."""

    def __init__(self, checkpoint: LanguageFolder) -> None:
        self.checkpoint, self.read = checkpoint, {}

    def __call__(self, name: str) -> "Recorded":
        return Recorded(self, name)


class Recorded:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name
        self.shape = recorder.checkpoint.source(name).shape

    def __getitem__(self, index) -> Tensor:
        part = self.recorder.checkpoint.source(self.name)[index]
        self.recorder.read[self.name] = self.recorder.read.get(self.name, 0) + part.numel()
        return part


def elements_read(rank: int, world_size: int, folder: Path) -> tuple[dict[str, int], int]:
    checkpoint = LanguageFolder(folder)
    config = toy_config(lm={"tied": checkpoint.lm_config.tied}, tensor=2, pipeline=2)
    start_layout(config.parallel)
    chunks = build_chunks(config, added=0)
    recorder = Recorder(checkpoint)
    load_language(chunks, recorder, config.model.lm)
    own = sum(p.numel() for c in chunks for q, p in placements(c) if ".xattn." not in q.name)
    return recorder.read, own


def test_each_rank_reads_only_its_part(folder):
    for read, own in run_distributed(elements_read, 4, folder):
        assert sum(read.values()) <= own
        assert len({name.split(".")[2] for name in read if ".layers." in name}) == 2, "half of the layers"


def test_added_rows_start_at_the_mean_of_the_known_tokens(folder):
    checkpoint = LanguageFolder(folder)
    table = checkpoint.source("model.embed_tokens.weight")[:]
    known = VOCAB - 7
    torch.testing.assert_close(checkpoint.mean_row(known, block=32), table[:known].mean(0))


def test_every_tensor_of_a_folder_is_accounted_for(folder, tmp_path):
    checkpoint = LanguageFolder(folder)
    report = checkpoint.report()
    report.check("f", "model.lm")
    assert len(report.used) == 2 + 12 * checkpoint.lm_config.layers + (not checkpoint.lm_config.tied)
    shutil.copytree(folder, tmp_path / "more")
    index = tmp_path / "more/model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = content["weight_map"].pop("model.norm.weight")
    held = load_file(tmp_path / "more" / file)
    del held["model.norm.weight"]
    for stray in ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.extra"):
        content["weight_map"][stray] = file
    index.write_text(json.dumps(content))
    strays = {name for name, place in content["weight_map"].items() if place == file} - held.keys()
    save_file(held | {name: torch.ones(2) for name in strays}, tmp_path / "more" / file)
    found = LanguageFolder(tmp_path / "more").report()
    assert found.missing == ("model.norm.weight",) and found.unknown == ("model.layers.0.extra",)
    table = "model.embed_tokens.weight"
    assert found.aliases == ({"lm_head.weight": table} if checkpoint.lm_config.tied else {})
    assert list(found.ignored.values()) == ["positions, computed here in float32"]


SPARSE = """
import resource, sys
import torch
from megatron_af.config import LMConfig
from megatron_af.convert.language import LanguageFolder, read_part
from megatron_af.parallel.global_state import EMBEDDING, Placement

lm, folder = LMConfig(), LanguageFolder(sys.argv[1])
folder.check(lm)
shapes = {EMBEDDING: (lm.vocab, 2048)}
for layer in range(lm.layers):
    at = f"lm.decoder.layers.{layer}"
    shapes[f"{at}.self_attention.linear_qkv.weight"] = (2560, 2048)
    shapes[f"{at}.mlp.linear_fc1.weight"] = (2 * lm.ffn, 2048)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = 0
for name, shape in shapes.items():
    halves = 2 if "linear_fc1" in name else 1
    part = Placement(name=name, shape=torch.Size(shape), dim=0, rank=1, size=2, halves=halves,
                     local_length=shape[0] // 2)
    read += read_part(part, lm, folder.source).nbytes
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(read, grown / 3e9)
"""


def test_a_full_size_folder_is_read_in_less_than_a_shard_of_memory(tmp_path):
    """Qwen2.5-3B's names and sizes in two sparse files of some 3 GB; half of the tensors' rows, as one of two ranks."""
    lm = LMConfig()
    shapes = {"model.embed_tokens.weight": [lm.vocab, lm.hidden]}
    for layer in range(lm.layers):
        at = f"model.layers.{layer}"
        for part, rows in (("q", 2048), ("k", 256), ("v", 256)):
            shapes[f"{at}.self_attn.{part}_proj.weight"] = [rows, lm.hidden]
        shapes |= {f"{at}.mlp.{part}_proj.weight": [lm.ffn, lm.hidden] for part in ("gate", "up")}
    (tmp_path / "config.json").write_text(json.dumps(Qwen2(lm).write_config()))
    names, weight_map = list(shapes), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        header, end = {}, 0
        for name in part:
            begin, end = end, end + 2 * shapes[name][0] * shapes[name][1]
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with (tmp_path / f"part-{number}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    done = subprocess.run(
        [sys.executable, "-c", SPARSE, str(tmp_path)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    read, shards = map(float, done.stdout.split())
    assert read == sum(2 * rows * columns for rows, columns in shapes.values()) / 2
    assert shards < 1.3, "peak memory in shards"


def test_a_folder_states_what_it_cannot_be_used_for(folder, tmp_path):
    lm = dataclasses.replace(LanguageFolder(folder).lm_config, hidden=32, ffn=7)
    with pytest.raises(ValueError, match=r"(?s)model\.lm\.hidden = 32: the folder has 64.*model\.lm\.ffn = 7"):
        LanguageFolder(folder).check(lm)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        LanguageFolder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="expected model_type 'qwen2', got 'llama'"):
        LanguageFolder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        LanguageFolder(tmp_path)


def test_an_opt_folder_of_another_size_or_family_is_refused(tmp_path):
    """Its learnt places are rows of a table: as many as there are, no more and no fewer."""
    sizes = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 4, "ffn": 64, "vocab": 50, "max_positions": 40}
    lm = LMConfig(family="opt", norm_eps=1e-5, **sizes)
    transformers_model(lm).save_pretrained(tmp_path)
    LanguageFolder(tmp_path, "opt").check(lm)
    other = dataclasses.replace(lm, ffn=96, max_positions=48)
    with pytest.raises(ValueError, match=r"(?s)model\.lm\.ffn = 96: the folder has 64.*max_positions = 48: .* has 40"):
        LanguageFolder(tmp_path, "opt").check(other)
    with pytest.raises(ValueError, match="expected model_type 'qwen2', got 'opt'"):
        LanguageFolder(tmp_path)


def test_a_quantised_folder_is_refused_by_name(folder, tmp_path):
    """Its numbers are read as weights otherwise, without the scales that make them ones."""
    shutil.copytree(folder, tmp_path / "lm")
    settings = tmp_path / "lm" / "config.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(ForeignError, match=r"config\.json: its weights are quantised \(gptq\)"):
        LanguageFolder(tmp_path / "lm")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rope_parameters": {"rope_theta": 10**400}}, r"expected a number as model\.lm\.rope_base, got 1000"),
        ({"rope_parameters": {"rope_theta": "1e6 "}}, r"expected a number as model\.lm\.rope_base, got '1e6 '"),
        ({"rms_norm_eps": 10**400}, r"config\.json: expected a number as model\.lm\.norm_eps, got 1000"),
        ({"hidden_size": None}, r"config\.json: expected a whole number as model\.lm\.hidden, got None"),
        ({"tie_word_embeddings": "no"}, r"expected true or false as model\.lm\.tied, got 'no'"),
        ({"num_hidden_layers": 2**63}, r"states 9223372036854775808 layers, and there are \d+ tensors"),
        ({"rope_scaling": 3}, r"values of other kinds than a qwen2 has"),
    ],
)
def test_sizes_that_are_none_are_told_of(folder, tmp_path, changed, told):
    shutil.copytree(folder, tmp_path / "lm")
    settings = tmp_path / "lm" / "config.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps(config | changed))
    with pytest.raises(ForeignError, match=told):
        _ = LanguageFolder(tmp_path / "lm").lm_config
    del config["hidden_size"]
    settings.write_text(json.dumps(config))
    with pytest.raises(ForeignError, match="does not state hidden_size"):
        _ = LanguageFolder(tmp_path / "lm").lm_config


def test_tensors_of_other_shapes_are_told_of():
    lm = LMConfig(hidden=8, layers=1, heads=2, kv_heads=1, ffn=16, vocab=9)
    whole = Placement(name="lm.decoder.layers.0.mlp.linear_fc1.weight", shape=torch.Size((32, 8)), dim=0, halves=2,
                      local_length=32)  # fmt: skip
    assert read_part(whole, lm, lambda name: torch.ones(16, 8)).shape == (32, 8)
    for shape in ((8, 8), (16, 9), (16,), (20, 8)):
        with pytest.raises(ForeignError, match=r"gate_proj\.weight: expected shape \(16, 8\), got .*; check model\.lm"):
            read_part(whole, lm, lambda name, shape=shape: torch.ones(shape))


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_rows_beyond_those_that_the_sizes_say_are_told_of(part):
    """They would be left out, and the model would compute something else."""
    lm = LMConfig(hidden=8, layers=1, heads=2, kv_heads=1, ffn=16, vocab=9)
    whole = Placement(name="lm.decoder.layers.0.self_attention.linear_qkv.weight", shape=torch.Size((16, 8)), dim=0,
                      local_length=16)  # fmt: skip
    rows = {"q": 8, "k": 4, "v": 4}

    def source(name):
        return torch.ones(rows[name.split(".")[-2][0]], 8)

    assert read_part(whole, lm, source).shape == (16, 8)
    rows[part] *= 2
    with pytest.raises(ForeignError, match=rf"{part}_proj\.weight: expected shape"):
        read_part(whole, lm, source)


def renamed(folder, target, change):
    """The same weights in one file, under other names."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    held = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    save_file({change(name): tensor for name, tensor in held.items()}, target / "model.safetensors")
    return LanguageFolder(target)


@pytest.mark.parametrize(
    "change",
    [lambda name: f"module._orig_mod.{name}", lambda name: name.removeprefix("model.")],
    ids=["wrapped", "without its head"],
)
def test_other_names_of_the_same_tensors_are_known(folder, tmp_path, change):
    found, usual = renamed(folder, tmp_path / "other", change), LanguageFolder(folder)
    assert found.report() == dataclasses.replace(usual.report(), used=found.report().used)
    for name in usual.report().used:
        assert torch.equal(found.source(name)[...], usual.source(name)[...]), name


def test_a_tied_table_may_stand_under_its_heads_name(folder, tmp_path):
    usual = LanguageFolder(folder)
    table = "model.embed_tokens.weight"
    found = renamed(folder, tmp_path / "other", lambda name: "lm_head.weight" if name == table else name)
    if usual.lm_config.tied:
        found.report().check("f", "model.lm")
        assert torch.equal(found.source(table)[...], usual.source(table)[...])


def test_a_tied_model_with_a_head_of_its_own_is_refused(folder, tmp_path):
    """transformers ties in name alone then, and computes with the head."""
    found = renamed(folder, tmp_path / "other", str)
    file = tmp_path / "other" / "model.safetensors"
    held = load_file(file)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    save_file(held, file)
    found = LanguageFolder(tmp_path / "other")
    found.compare(found.report())
    if found.lm_config.tied:
        held["lm_head.weight"][-1, -1] += 1
        save_file(held, file)
        found = LanguageFolder(tmp_path / "other")
        with pytest.raises(ForeignError, match=r"lm_head\.weight is not model\.embed_tokens.*set tie_word_embeddings"):
            found.compare(found.report())


def test_adapters_beside_weights_are_not_left_out(folder, tmp_path):
    """transformers adds them."""
    shutil.copytree(folder, tmp_path / "lm")
    (tmp_path / "lm/adapter_config.json").write_text("{}")
    with pytest.raises(ForeignError, match="holds adapters beside its weights"):
        LanguageFolder(tmp_path / "lm")


def test_a_folder_without_a_configuration_says_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="which is not there: download the model first"):
        LanguageFolder(tmp_path / "Qwen/Qwen2.5-3B")
    (snapshot := tmp_path / "models--a--b/snapshots/abc").mkdir(parents=True)
    (snapshot / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=f"a cache of the hub: name {snapshot}"):
        LanguageFolder(tmp_path / "models--a--b")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"/lora, with adapter_model\.safetensors, which holds adapters alone"):
        LanguageFolder(tmp_path / "lora")
