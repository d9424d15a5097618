"""Weights are written shard by shard, and no more than one shard is in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_af.convert.shards import INDEX, Held, open_weights, tensor_files, write_shards
from megatron_af.foreign import ForeignError


def test_small_weights_are_one_file_that_no_index_names(tmp_path: Path) -> None:
    table = torch.arange(12.0).view(3, 4)
    write_shards(tmp_path, [("rows", table[1:]), ("columns", table.t()), ("same", table)])
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["rows"], table[1:]) and torch.equal(found["columns"], table.t())


def test_large_weights_are_shards_in_the_order_they_came(tmp_path: Path) -> None:
    tensors = {name: torch.full((size,), float(size)) for name, size in (("a", 4), ("b", 6), ("c", 30), ("d", 2))}
    write_shards(tmp_path, tensors.items(), shard_bytes=40)
    index = json.loads((tmp_path / INDEX).read_text())
    names = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    assert index["weight_map"] == dict(zip("abcd", [names[0], names[0], names[1], names[2]], strict=True))
    assert index["metadata"]["total_size"] == 4 * 42
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*names, INDEX])
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


MEASURE = """
import resource, sys, torch
from pathlib import Path
from megatron_af.convert.shards import write_shards

write_shards(Path(sys.argv[1]), [("warm", torch.ones(1000))])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream = ((f"t{i}", torch.full((4_000_000,), float(i))) for i in range(40))    # 640 MB, 16 at a time
write_shards(Path(sys.argv[1]), stream, shard_bytes=160_000_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 160_000_000)
"""


@pytest.mark.slow
def test_no_more_than_a_shard_is_in_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.3, "peak memory in shards"
    assert len(list(tmp_path.glob("model-*-of-00004.safetensors"))) == 4


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_shards(tmp_path, [(name, torch.ones(8)) for name in "abc"], shard_bytes=64)
    return tmp_path


def test_an_index_says_where_each_tensor_is(sharded: Path) -> None:
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    assert tensor_files(sharded) == {"a": first, "b": first, "c": second}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "has no weight_map"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "no file of its own folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "no file of its own folder"),
        ('{"weight_map": {"z": "model-00001-of-00002.safetensors"}}', "holds z, which it does not"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    ],
)
def test_an_index_that_does_not_belong_to_the_weights_is_refused(sharded: Path, content: str, message: str) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(ForeignError, match=message) as refused:
        tensor_files(sharded)
    assert str(refused.value).startswith(str(sharded / INDEX))


def test_a_part_that_is_missing_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names model-00002-of-00002\.safetensors, which is missing"):
        tensor_files(sharded)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"", "is empty"),
        (b"\x00" * 64, "nothing but zero bytes"),
        (b"\xff" * 64, "is no whole safetensors file: fetch it again"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ForeignError, match=message) as refused:
        tensor_files(tmp_path)
    assert str(refused.value).startswith(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("name", "dtype", "refused"),
    [
        ("layer.weight", torch.float8_e4m3fn, "F8_E4M3"),
        ("layer.qweight", torch.int32, "I32"),
        ("layer.weight_packed", torch.int32, "I32"),
        ("layer.weight", torch.int8, "I8"),
        ("position_ids", torch.int64, ""),
        ("layer.weight", torch.bfloat16, ""),
    ],
)
def test_quantised_numbers_are_no_weights(tmp_path: Path, name: str, dtype: torch.dtype, refused: str) -> None:
    save_file({name: torch.zeros(4).to(dtype), "norm": torch.ones(2)}, tmp_path / "model.safetensors")
    if not refused:
        assert set(tensor_files(tmp_path)) == {name, "norm"}
        return
    with pytest.raises(ForeignError, match=rf"{name} is quantised \({refused}\)"):
        tensor_files(tmp_path)


def test_a_copy_that_broke_off_is_named_wherever_it_did(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(2, 3)}, file)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ForeignError, match=r"model\.safetensors"):
            open_weights(file)


def test_a_tensor_that_two_files_hold_is_refused(sharded: Path) -> None:
    second = sharded / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"a": torch.zeros(8)}, second)
    with pytest.raises(ForeignError, match=r"model-00001-of-00002\.safetensors and model-00002-of\S+ both hold a: "):
        tensor_files(sharded)


def test_what_a_file_holds_beside_the_index_is_there(sharded: Path) -> None:
    """transformers reads it, too; whether it is of use the family says."""
    second = sharded / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"d": torch.zeros(8)}, second)
    assert tensor_files(sharded)["d"] == second.name


def test_an_index_and_other_weights_beside_it_are_two_models(sharded: Path) -> None:
    save_file({"a": torch.zeros(8)}, sharded / "model.safetensors")
    with pytest.raises(ForeignError, match=r"holds model\.safetensors and an index that does not name it"):
        tensor_files(sharded)
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert tensor_files(sharded) == {"a": "model.safetensors"}


def test_the_hubs_cache_is_links(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("models--a--b")
    (cache / "snapshots/abc").mkdir(parents=True)
    sharded.rename(cache / "blobs")
    for number, file in enumerate(sorted((cache / "blobs").iterdir())):
        (cache / "snapshots/abc" / file.name).symlink_to(f"../../blobs/{number}")
        file.rename(file.with_name(str(number)))
    assert sorted(tensor_files(cache / "snapshots/abc")) == ["a", "b", "c"]


@pytest.mark.parametrize("parts", [1, 2])
def test_weights_as_opt_was_released_are_read(tmp_path: Path, parts: int) -> None:
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"module.a": whole[1:], "b": whole.t()}, tmp_path / "pytorch_model.bin")
    if parts == 2:
        (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model-00001-of-00002.bin")
        torch.save({"c": torch.ones(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
        names = {"a": 1, "b": 1, "c": 2}
        where = {name: f"pytorch_model-0000{number}-of-00002.bin" for name, number in names.items()}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    found = tensor_files(tmp_path)
    assert sorted(found) == ["a", "b", "c"][: 1 + parts]
    file = open_weights(tmp_path / found["a"])
    assert torch.equal(file.get_slice("a")[:, 1:3], whole[1:, 1:3]) and torch.equal(file.get_tensor("b"), whole.t())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("adapter_model.safetensors", "which holds adapters alone: merge them"),
        ("q4_k_m.gguf", "which is quantised or renamed for llama"),
        ("model.safetensors.incomplete", "a download that broke off"),
        ("model-00001-of-00002.safetensors", "and no index that says which"),
        ("README.md", "which is not there; fetch the whole model, or save it by save_pretrained"),
    ],
)
def test_a_folder_without_weights_says_what_it_has(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=told):
        tensor_files(tmp_path)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../../blobs/0")
    with pytest.raises(FileNotFoundError, match=r"got model\.safetensors, which is a link to nothing: fetch it again"):
        tensor_files(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(FileNotFoundError, match=r"got model\.safetensors, which is a folder"):
        tensor_files(tmp_path)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e300])
def test_numbers_that_nothing_can_be_computed_with_are_refused(tmp_path: Path, broken: float) -> None:
    """Of what is read alone: another rank tells of its own part."""
    tensor = torch.ones(4, 2, dtype=torch.float64)
    tensor[3, 1] = broken
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    for source in (tensor, open_weights(tmp_path / "model.safetensors").get_slice("a")):
        held = Held(tmp_path, "a", source)
        assert held.shape == (4, 2) and torch.equal(held[:2], tensor[:2])
        with pytest.raises(ForeignError, match=rf"{tmp_path}: a holds 1 numbers that are NaN or infinite in float32"):
            _ = held[2:]
    with pytest.raises(ForeignError, match="b holds int32, no weights"):
        _ = Held(tmp_path, "b", torch.ones(2, dtype=torch.int32))[:]
