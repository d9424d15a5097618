"""Weights are written shard by shard, and no more than one shard is in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_af.convert.shards import INDEX, write_shards


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
