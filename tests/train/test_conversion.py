"""A Hugging Face folder becomes a checkpoint that any layout starts from, and the same folder again."""

import dataclasses
import filecmp
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_af.config import Config, DataConfig, EncoderConfig, LoRAConfig, StageConfig, TransformConfig
from megatron_af.config.loading import to_yaml
from megatron_af.convert.clap_folder import ClapFolder
from megatron_af.convert.language import LanguageFolder, load_language
from megatron_af.convert.released import ReleasedFolder, released_tensors
from megatron_af.decoder.lm import AudioLM
from megatron_af.foreign import ForeignError
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.parallel.global_state import gather_global
from megatron_af.parallel.world import join_world
from megatron_af.runs.paths import MANIFEST, SETTINGS, CheckpointError, Resume
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.checkpoint_reading import load_parts
from megatron_af.train.conversion import (
    WHOLE,
    Occupied,
    convert,
    refuse_checkpoints,
    refuse_occupied,
    refuse_other_tokenizer,
    refuse_other_words,
)
from tests.convert.qwen_folder import write_folder
from tests.convert.released_folder import FIXTURE, folder
from tests.convert.toy_clap import write_clap
from tests.decoder.opt_folder import write_opt_folder
from tests.decoder.toy import full_audio, open_gates, plain_rows, relative_error, run_schedule, toy_config
from tests.distributed import run_distributed
from tests.faults.deaths import deaths, lives
from tests.parity import FOLDER, Fixture
from tests.parity_config import fixture_config

__all__ = ["folder"]
KNOWN_TOKENS = 85


def write_tokenizer(path: Path, known: int = KNOWN_TOKENS) -> None:
    tokens = ["<|endoftext|>", "[UNK]", *(f"w{i}" for i in range(known - 2))]
    model = tokenizers.models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(path))


def opened(folder: Path) -> LanguageFolder:
    return LanguageFolder(folder, json.loads((folder / "config.json").read_text())["model_type"])


def toy_run(folder: Path, **layout: object):
    config = toy_config(lm=dataclasses.asdict(opened(folder).lm_config), **layout)
    model = dataclasses.replace(
        config.model,
        encoder=EncoderConfig(embed_dim=6, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8), classes=0, fusion=False),
        transform=TransformConfig(layers=1, heads=2, ffn=32),
    )
    return dataclasses.replace(config, model=model, data=DataConfig(tokenizer=str(folder / "tokenizer.json")))


def write_checkpoint(rank: int, world_size: int, folder: Path, target: Path) -> str:
    return str(convert(toy_run(folder, tensor=2, sequence=True), folder, target))


def start_from_it(rank: int, world_size: int, folder: Path, checkpoint: str) -> tuple[Tensor | None, Tensor]:
    config = toy_run(folder, pipeline=2)
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, Vocabulary(first_added_id=KNOWN_TOKENS, num_added=4), current_device())
    load_parts(model, groups, Path(checkpoint), ["lm", "rows"])
    with pytest.raises(CheckpointError, match="holds lm, rows but no"):
        load_parts(model, groups, Path(checkpoint), ["xattn"])
    rows = plain_rows(vocab=KNOWN_TOKENS)
    added = model.front.added_rows.detach()
    logits = run_schedule(model.chunks, [(rows, full_audio())], added, forward_only=True, forward=AudioLM.logits)
    return (logits[0] if logits else None), added


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_converted_folder_starts_stages_in_another_layout(tmp_path, tied):
    from transformers import AutoModelForCausalLM

    folder = write_folder(tmp_path / "qwen2", tied=tied)
    write_tokenizer(folder / "tokenizer.json")
    written = run_distributed(write_checkpoint, 2, folder, tmp_path / "converted")[0]
    assert written == str(tmp_path / "converted" / "step_00000000")
    logits, added = run_distributed(start_from_it, 2, folder, written)[-1]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(input_ids=plain_rows(vocab=KNOWN_TOKENS).ids_BS).logits
    assert relative_error(logits[..., :KNOWN_TOKENS], expected[..., :KNOWN_TOKENS]) < 1e-5
    mean = model.get_input_embeddings().weight[:KNOWN_TOKENS].mean(0).detach()
    torch.testing.assert_close(added, mean.expand(4, -1))


def test_a_tokenizer_that_is_not_that_of_the_weights_is_refused(tmp_path):
    """Ids would mean other words than those that the model has learnt."""
    (tmp_path / "lm").mkdir()
    write_tokenizer(tmp_path / "other.json", 50)
    convert_with(tmp_path / "lm", tmp_path / "other.json")  # it has none
    write_tokenizer(tmp_path / "lm/tokenizer.json", 45)
    convert_with(tmp_path / "lm", tmp_path / "other.json")  # words behind the others are its user's own
    write_tokenizer(tmp_path / "lm/tokenizer.json", 55)
    with pytest.raises(ForeignError, match=r"other\.json is another: 'w48' is 50 in the one and unknown in the other"):
        convert_with(tmp_path / "lm", tmp_path / "other.json")
    (tmp_path / "lm/tokenizer.json").write_text("{")  # what it is nobody knows
    with pytest.raises(ForeignError, match=r"cannot be compared with .*tokenizer\.json is not JSON.*Fetch it again"):
        convert_with(tmp_path / "lm", tmp_path / "other.json")
    (tmp_path / "lm/tokenizer.json").unlink()
    (tmp_path / "lm/vocab.json").write_text("{}")
    with pytest.raises(ForeignError, match="cannot be compared with"):
        convert_with(tmp_path / "lm", tmp_path / "other.json")


def convert_with(folder: Path, tokenizer: Path) -> None:
    refuse_other_tokenizer(folder, Tokenizer.load(tokenizer), str(tokenizer))


def write_back(rank: int, world_size: int, folder: Path, checkpoint: str, target: Path) -> None:
    convert(toy_run(folder, pipeline=world_size), Path(checkpoint), target, shard_bytes=100_000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2, tied", "qwen2, untied", "opt"])
def test_in_and_out_again_gives_the_same_bits(tmp_path, kind):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "published"
    write_opt_folder(folder) if kind == "opt" else write_folder(folder, tied=kind == "qwen2, tied")
    write_tokenizer(folder / "tokenizer.json")
    written = run_distributed(write_checkpoint, 2, folder, tmp_path / "converted")[0]
    run_distributed(write_back, 2, folder, written, tmp_path / "back")
    before, after = opened(folder), opened(tmp_path / "back")
    assert after.lm_config == before.lm_config
    names = {name for file in folder.glob("*.safetensors") for name in load_file(file)}
    found = [name for file in (tmp_path / "back").glob("model-*.safetensors") for name in load_file(file)]
    assert sorted(found) == sorted(names) and len(list((tmp_path / "back").glob("model-*"))) > 2
    for name in names:
        assert torch.equal(after.source(name)[...], before.source(name)[...]), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=plain_rows().ids_BS).logits, torch.load(folder / "logits.pt"))
    assert not list(tmp_path.glob(".*")), "nothing half-written"


LORA = LoRAConfig(rank=4, alpha=8.0, dropout=0.1)


def with_lora(config: Config) -> Config:
    return dataclasses.replace(config, curriculum={"tune": StageConfig(lora=LORA)}, stage="tune")


def write_adapted(rank: int, world_size: int, folder: Path, target: Path) -> Tensor:
    """A checkpoint of the folder's language model with adapters that do something, and its logits."""
    config = with_lora(toy_run(folder))
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, Vocabulary(first_added_id=KNOWN_TOKENS, num_added=4), current_device())
    load_language(model.chunks, opened(folder).source, config.model.lm)
    adapters = [(name, p) for name, p in model.named_parameters() if ".lora." in name]
    for name, parameter in adapters:
        parameter.data = open_gates(name, parameter.shape)
    resume = Resume(stage="tune", step=0, skipped=0, samples=0, world_size=1)
    Checkpoints(target, keep=1).save(model, None, groups, resume, {}, ("lm", "rows", "lora"), to_yaml(config))
    batches = [(plain_rows(vocab=KNOWN_TOKENS), full_audio())]
    added = model.front.added_rows.detach()
    model.chunks[0].eval()
    (logits,) = run_schedule(model.chunks, batches, added, forward_only=True, forward=AudioLM.logits)
    return logits[..., :KNOWN_TOKENS]


def write_out(rank: int, world_size: int, folder: Path, checkpoint: Path, target: Path, adapter: bool) -> None:
    layout = {"tensor": 2, "sequence": True} if adapter else {"pipeline": 2}
    convert(toy_run(folder, **layout), checkpoint, target, adapter=adapter)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "opt"])
def test_adapters_go_out_merged_or_for_peft(tmp_path: Path, family: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, merged, adapter = tmp_path / "base", tmp_path / "merged", tmp_path / "adapter"
    write_opt_folder(base) if family == "opt" else write_folder(base, tied=True)
    write_tokenizer(base / "tokenizer.json")
    (expected,) = run_distributed(write_adapted, 1, base, tmp_path / "tuned")
    checkpoint = tmp_path / "tuned" / "step_00000000"
    run_distributed(write_out, 2, base, checkpoint, merged, False)
    run_distributed(write_out, 2, base, checkpoint, adapter, True)

    def logits(model: Any) -> Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=plain_rows(vocab=KNOWN_TOKENS).ids_BS).logits[..., :KNOWN_TOKENS]

    plain = AutoModelForCausalLM.from_pretrained(base)
    assert relative_error(logits(plain), expected) > 0.1
    assert relative_error(logits(AutoModelForCausalLM.from_pretrained(merged)), expected) < 1e-5
    loaded = PeftModel.from_pretrained(plain, adapter)
    assert relative_error(logits(loaded), expected) < 1e-5
    assert sorted(file.name for file in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    stated = loaded.peft_config["default"]
    assert (stated.r, stated.lora_alpha, stated.lora_dropout) == (LORA.rank, LORA.alpha, LORA.dropout)


def test_a_checkpoint_without_adapters_has_none_to_write(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"parts": {"lm": "."}}')
    with pytest.raises(ValueError, match="holds no adapters"):
        convert(toy_config(), tmp_path, tmp_path / "out", adapter=True)


def converted(config: Config, source: Path, target: Path) -> None:
    join_world()
    with suppress(Occupied):  # by what is whole: who gave the command is told to name another place
        convert(config, source, target)


def alike(one: Path, other: Path) -> bool:
    names = {path.name for path in (*one.iterdir(), *other.iterdir())}
    return len(names) > 1 and filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


@pytest.mark.slow
def test_a_death_at_any_moment_leaves_a_whole_folder_or_none(tmp_path: Path) -> None:
    """What goes out; checkpoints have such a test of their own."""
    write_tokenizer(write_folder(tmp_path / "qwen2", tied=True) / "tokenizer.json")
    config, checkpoint = toy_run(tmp_path / "qwen2"), tmp_path / "checkpoints/step_00000000"
    assert lives(partial(converted, config, tmp_path / "qwen2", checkpoint.parent))
    assert lives(partial(converted, config, checkpoint, tmp_path / "whole"))
    folder, met = tmp_path / "published", 0
    for met in deaths(partial(converted, config, checkpoint, folder)):
        assert not folder.exists() or alike(tmp_path / "whole", folder), f"at change {met}"
    assert met >= 5 and alike(tmp_path / "whole", folder)
    assert not list(tmp_path.glob(".*")), "nothing half-written"


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (Path(), tmp_path):
        with pytest.raises(Occupied, match="which you are in: name another"):
            refuse_occupied(name)


def test_a_full_folder_is_not_written_into(tmp_path):
    (tmp_path / "step" / MANIFEST).parent.mkdir()
    (tmp_path / "step" / MANIFEST).write_text('{"parts": {}}')
    with pytest.raises(Occupied, match="expected a new or empty folder"):
        convert(toy_config(), tmp_path / "step", tmp_path)


@pytest.mark.parametrize("held", ["step_00000000", "step_00000200"])
def test_other_checkpoints_are_not_replaced(tmp_path, held):
    """Of a run, or of what was converted before: the new one is of step 0, and of one folder one is kept."""
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm/step_00000000.partial").mkdir()  # what a death left is no checkpoint
    refuse_checkpoints(tmp_path / "lm")
    (tmp_path / "lm" / held).mkdir()
    (tmp_path / "lm" / held / MANIFEST).write_text("{}")
    folder = write_folder(tmp_path / "qwen2", tied=True)
    with pytest.raises(Occupied, match=rf"without checkpoints to write to, got .*lm, which holds {held} already"):
        convert(toy_config(), folder, tmp_path / "lm")
    with pytest.raises(Occupied, match=r"config\.json, which is a file: name another"):
        convert(toy_config(), folder, folder / "config.json")


def test_a_folder_of_another_model_is_refused(tmp_path):
    folder = write_folder(tmp_path / "qwen2", tied=True)
    config = toy_config(lm={"ffn": 96})
    with pytest.raises(ValueError, match=r"model\.lm\.ffn = 96: the folder has 160"):
        convert(config, folder, tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"rope_base": 5e5}, {"norm_eps": 1e-3}, {"heads": 2, "kv_heads": 1}, {"tied": True}, {"vocab": 93}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_checkpoint_goes_out_as_the_model_that_it_was_written_for(tmp_path, changed):
    """All tensors fit, or are left out: what is written would be another model."""
    (tmp_path / MANIFEST).write_text('{"parts": {"lm": "."}}')
    (tmp_path / SETTINGS).write_text(to_yaml(toy_config(lm={"tied": False})))
    key = next(iter(changed))
    with pytest.raises(ValueError, match=rf"holds another model:\n  model\.lm\.{key} = .*: the folder has"):
        convert(toy_config(lm={"tied": False} | changed), tmp_path, tmp_path / "out")


def test_a_checkpoint_goes_out_with_the_words_that_it_was_trained_with(tmp_path):
    """They lie beside what is written, and would be taken for its own."""
    write_tokenizer(tmp_path / "own.json", 50)
    write_tokenizer(tmp_path / "grown.json", 55)
    write_tokenizer(tmp_path / "other.json", 45)
    for name in ("own", "grown"):  # words behind the others are its user's own
        refuse_other_words(tmp_path, str(tmp_path / "own.json"), str(tmp_path / f"{name}.json"))
    (tmp_path / MANIFEST).write_text('{"parts": {"lm": "."}}')
    run = dataclasses.replace(toy_config(), data=DataConfig(tokenizer=str(tmp_path / "own.json")))
    (tmp_path / SETTINGS).write_text(to_yaml(run))
    other = dataclasses.replace(run, data=DataConfig(tokenizer=str(tmp_path / "other.json")))
    with pytest.raises(ForeignError, match=r"was written with data\.tokenizer = .*own\.json, and .*is another: 'w43'"):
        convert(other, tmp_path, tmp_path / "out")


def released_run(tokenizer: Path, tensor: int):
    config, vocabulary = fixture_config(FIXTURE)
    parallel = dataclasses.replace(config.parallel, tensor=tensor)
    return dataclasses.replace(config, parallel=parallel, data=DataConfig(tokenizer=str(tokenizer))), vocabulary


def write_released(rank: int, world_size: int, source: Path, target: Path) -> tuple[str, list[str]]:
    told: list[str] = []
    return str(convert(released_run(source / "tokenizer.json", 2)[0], source, target, tell=told.append)), told


def refused_released(rank: int, world_size: int, source: Path, target: Path) -> str:
    with pytest.raises(ValueError, match=r"1 tensors belong to no part of this model: lang_encoder\.stray; check"):
        convert(released_run(source / "tokenizer.json", 1)[0], source, target)
    return ""


def read_released(rank: int, world_size: int, tokenizer: Path, checkpoint: str) -> dict[str, Tensor]:
    config, vocabulary = released_run(tokenizer, 1)
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, vocabulary, current_device())
    load_parts(model, groups, Path(checkpoint), WHOLE)
    return released_tensors(gather_global(model.chunks, model.front), config.model)


INDICES = "indices and masks, computed here"


def add_chunk(folder: Path, tensors: dict[str, Tensor]) -> None:
    metadata = json.loads((folder / "metadata.json").read_text())
    chunk = f"model_chunk_{len(metadata)}"
    save_file(tensors, folder / f"{chunk}.safetensors")
    (folder / "metadata.json").write_text(json.dumps(metadata | {chunk: {}}))


@pytest.mark.slow
def test_a_released_model_becomes_a_checkpoint_of_all_its_parts(folder, tmp_path):
    write_tokenizer(folder / "tokenizer.json", known=FIXTURE.info["config"]["media_id"])
    table = FIXTURE.weights()["lang_encoder.model.embed_tokens.weight"]
    index = {"clap.afclap.layers.0.blocks.0.attn.relative_position_index": torch.zeros(1)}
    add_chunk(folder, {"lang_encoder.lm_head.weight": table} | index)
    (written, told), (_, nothing) = run_distributed(write_released, 2, folder, tmp_path / "converted")
    held = ReleasedFolder(folder).keys
    assert told == [f"{folder}: {len(held) - 2} tensors used; 1 aliases; 1 ignored (1: {INDICES})"] and not nothing
    tensors = run_distributed(read_released, 1, folder / "tokenizer.json", written)[0]
    for name, tensor in FIXTURE.weights().items():
        assert torch.equal(tensors[name], tensor), name
    assert any(name.startswith("clap.nvclap.") for name in tensors), "and its encoder"
    add_chunk(folder, {"lang_encoder.stray": torch.zeros(1)})
    run_distributed(refused_released, 1, folder, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


AF1 = Fixture.load(FOLDER / "af1_tiny.npz")


def af1_run(tokenizer: Path):
    config, _ = fixture_config(AF1)
    return dataclasses.replace(config, data=DataConfig(tokenizer=str(tokenizer)))


def write_af1(rank: int, world_size: int, source: Path, target: Path) -> tuple[str, list[str]]:
    told: list[str] = []
    return str(convert(af1_run(source.parent / "tokenizer.json"), source, target, tell=told.append)), told


def read_af1(rank: int, world_size: int, tokenizer: Path, checkpoint: str) -> dict[str, Tensor]:
    config = af1_run(tokenizer)
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, fixture_config(AF1)[1], current_device())
    load_parts(model, groups, Path(checkpoint), WHOLE[1:])
    with pytest.raises(CheckpointError, match="but no encoder"):
        load_parts(model, groups, Path(checkpoint), ["encoder"])
    return released_tensors(gather_global(model.chunks, model.front), config.model)


@pytest.mark.slow
def test_audio_flamingo_1s_file_becomes_a_checkpoint_of_all_but_the_encoder(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json", known=AF1.info["config"]["media_id"])
    weights = AF1.weights()
    state = weights | {alias: weights[name] for alias, name in AF1.info["aliases"].items()}
    state |= {"clap.clap.base.htsat.norm.weight": torch.zeros(1)}
    torch.save({"epoch": 7, "model_state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "chat.pt")
    written, told = run_distributed(write_af1, 1, tmp_path / "chat.pt", tmp_path / "converted")[0]
    counts = f"{len(weights)} tensors used; {len(AF1.info['aliases'])} aliases; 0 ignored"
    assert told == [f"{tmp_path / 'chat.pt'}: {counts}"]
    tensors = run_distributed(read_af1, 1, tmp_path / "tokenizer.json", written)[0]
    for name, tensor in weights.items():
        assert torch.equal(tensors[name], tensor), name
    alias = next(iter(AF1.info["aliases"]))
    torch.save(state | {alias: state[alias] + 1}, tmp_path / "chat.pt")
    run_distributed(refused_alias, 1, tmp_path / "chat.pt", alias)


def refused_alias(rank: int, world_size: int, source: Path, alias: str) -> None:
    with pytest.raises(ForeignError, match=f"{alias} is not "):
        convert(af1_run(source.parent / "tokenizer.json"), source, source.parent / "refused")


def refused_head(rank: int, world_size: int, folder: Path) -> None:
    with pytest.raises(ForeignError, match=r"set tie_word_embeddings of config\.json and model\.lm\.tied to false"):
        convert(toy_run(folder), folder, folder / "refused")


@pytest.mark.slow
def test_a_head_that_is_not_the_tied_table_is_not_lost(tmp_path):
    folder = write_folder(tmp_path / "qwen2", tied=True)
    write_tokenizer(folder / "tokenizer.json")
    held = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    run_distributed(refused_head, 1, folder)


def convert_clap(rank: int, world_size: int, clap: Path, language: Path, target: Path) -> tuple[str, list[str]]:
    config, model = toy_run(language), ClapFolder(clap).model
    told: list[str] = []
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, front_end=model.front_end, encoder=model.encoder)
    )
    heard_otherwise = dataclasses.replace(model.front_end, long_clips="windows")
    with pytest.raises(ForeignError, match=r"long_clips = windows: .* set it to views"):
        convert(dataclasses.replace(config, model=dataclasses.replace(config.model, front_end=heard_otherwise)),
                clap, target)  # fmt: skip
    return str(convert(config, clap, target, tell=told.append)), told


@pytest.mark.slow
def test_laion_claps_folder_becomes_a_checkpoint_of_the_encoder(tmp_path):
    theirs = write_clap(tmp_path / "clap")
    language = write_folder(tmp_path / "qwen2", tied=True)
    write_tokenizer(language / "tokenizer.json")
    ((written, told),) = run_distributed(convert_clap, 1, tmp_path / "clap", language, tmp_path / "out")
    assert json.loads((Path(written) / MANIFEST).read_text())["parts"].keys() == {"encoder"}
    (line,) = told
    used = int(line.split(": ", 1)[1].split(" tensors used")[0])
    ignored = int(line.split("aliases; ")[1].split(" ignored")[0])
    assert used + ignored == len(theirs.state_dict()) and "feature fusion" not in line
