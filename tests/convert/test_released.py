"""Released names and layouts: aliases, several ranks, and back again to the same tensors."""

import pytest
import torch
from safetensors.torch import save_file

from megatron_af.config import LMConfig, ParallelConfig
from megatron_af.convert.released import (
    ReleasedFolder,
    aliases,
    load_released,
    release_problem,
    released_names,
    released_tensors,
)
from megatron_af.foreign import ForeignError
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from megatron_af.parallel.global_state import gather_global
from tests.convert import released_folder
from tests.convert.released_folder import FIXTURE
from tests.distributed import run_distributed
from tests.parity import FOLDER, Fixture
from tests.parity_config import fixture_config

folder = released_folder.folder


def test_every_alias_of_the_fixtures_is_known():
    for fixture in (FIXTURE, Fixture.load(FOLDER / "af1_tiny.npz")):
        known = {alias: name for name in fixture.info["parameters"] for alias in aliases(name)}
        assert known == fixture.info["aliases"]


def _round_trip(rank: int, world_size: int, folder: str) -> dict[str, torch.Tensor]:
    config, vocabulary = fixture_config(FIXTURE)
    parallel = ParallelConfig(tensor=world_size)
    groups.initialize(parallel, 0)
    config = type(config)(**{**vars(config), "parallel": parallel})
    model = build(config, vocabulary, current_device())
    load_released(model, ReleasedFolder(folder).source, config.model, vocabulary)
    weights = gather_global(model.chunks, model.front)
    return released_tensors(weights, config.model) if rank == 0 else {}


@pytest.mark.slow
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_reads_into_any_layout_and_writes_the_same_back(folder, tensor_parallel):
    released = run_distributed(_round_trip, tensor_parallel, str(folder))[0]
    for name, tensor in FIXTURE.weights().items():
        assert torch.equal(released[name], tensor), name
    encoder = [name for name in released if name not in FIXTURE.info["parameters"]]
    assert encoder
    assert all(name.startswith("clap.nvclap.") for name in encoder)


def _wrong_vocabulary(rank: int, world_size: int) -> None:
    config, vocabulary = fixture_config(FIXTURE)
    groups.initialize(config.parallel, 0)
    model = build(config, vocabulary, current_device())
    with pytest.raises(ValueError, match=r"model\.lm\.vocab = 121"):
        load_released(model, FIXTURE.weights().__getitem__, config.model, Vocabulary(first_added_id=121, num_added=3))


@pytest.mark.slow
def test_another_vocabulary_names_its_key():
    run_distributed(_wrong_vocabulary, 1)


def test_the_releases_of_2025_are_told_apart_by_name(tmp_path):
    safe, clap = tmp_path / "safe_ckpt", tmp_path / "clap_ckpt"
    safe.mkdir(), clap.mkdir()
    assert release_problem(safe, 8_000) == ""
    assert "max_hz = 14000: Audio Flamingo 2 of June 2025 hears up to 8000 Hz" in release_problem(safe, 14_000)
    (clap / "epoch_15.pt").touch()
    assert "is the release of March 2025 (epoch_15.pt), whose rotary positions run over" in release_problem(safe, 8_000)
    (clap / "epoch_16.pt").touch()
    assert release_problem(safe, 8_000) == ""


def test_incomplete_folders_say_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metadata\.json"):
        ReleasedFolder(tmp_path)
    (tmp_path / "metadata.json").write_text('{"model_chunk_0": {}}')
    with pytest.raises(FileNotFoundError, match=r"model_chunk_0\.safetensors"):
        ReleasedFolder(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model_chunk_0.safetensors")
    with pytest.raises(ForeignError, match="holds no"):
        ReleasedFolder(tmp_path).source(released_names("encoder.norm.weight", LMConfig())[0])
    (tmp_path / "metadata.json").write_text('{"model_chunk_0": {}, "model_chunk_1": {}}')
    save_file({"a": torch.ones(1)}, tmp_path / "model_chunk_1.safetensors")
    with pytest.raises(ForeignError, match=r"model_chunk_1\.safetensors holds a, as a chunk before it does"):
        ReleasedFolder(tmp_path)
