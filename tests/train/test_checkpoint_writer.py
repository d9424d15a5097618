"""The process that writes checkpoints: started once, fed through shared memory, gone with training."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor

from megatron_af.parallel.device import make_megatron_portable
from megatron_af.train.checkpoint_files import write_and_digest
from megatron_af.train.checkpoint_writer import CheckpointWriter, Saves, results_queue
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def request_of(folder: Path, tensors: dict[str, torch.Tensor]) -> Any:
    folder.mkdir()
    state = {name: ShardedTensor.from_rank_offsets(name, tensor) for name, tensor in tensors.items()}
    results_queue()
    request = dist_checkpointing.save(state, str(folder), async_sharded_save=True, async_strategy="mcore")
    assert request.async_fn is not None
    return request


def read(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    frame = {name: ShardedTensor.from_rank_offsets(name, torch.zeros_like(x)) for name, x in tensors.items()}
    loaded: dict[str, torch.Tensor] = dist_checkpointing.load(frame, str(folder))
    return loaded


def saves(rank: int, world_size: int, folder: Path) -> tuple[list[int], int]:
    """One process writes two checkpoints, the second one larger, each as the tensors were when it was asked for."""
    make_megatron_portable()
    writer = CheckpointWriter()
    queue = Saves(writer)
    pids = []
    for number, size in enumerate((10, 100_000)):
        tensors = {"a": torch.full((size,), float(number)), "b": torch.arange(7)[::2]}
        expected = {name: tensor.clone() for name, tensor in tensors.items()}
        path = folder / str(number)
        queue.schedule_async_request(request_of(path, tensors))
        tensors["a"].fill_(-1)  # training goes on
        queue.maybe_finalize_async_calls(blocking=True)
        found = read(path, expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        pids.append(writer.process.pid)
    writer.process.send_signal(signal.SIGTERM)
    writer.close()
    return pids, writer.process.returncode


def test_one_process_writes_every_checkpoint(tmp_path: Path) -> None:
    ((pids, code),) = run_distributed(saves, 1, tmp_path)
    assert pids[0] == pids[1]
    assert code == 0, "a signal to the whole group does not end it"


def files_are_the_same(rank: int, world_size: int, folder: Path) -> None:
    make_megatron_portable()
    tensors = {"a": torch.randn(1000), "b": torch.arange(7)}
    request = request_of(folder / "here", tensors)
    _, buckets, results = request.async_fn_args
    write_and_digest(folder / "here", dist.get_rank(), buckets, results)
    for finalize in request.finalize_fns:
        finalize()
    assert all(torch.equal(x, tensors[name]) for name, x in read(folder / "here", tensors).items())


def test_this_process_writes_the_same(tmp_path: Path) -> None:
    run_distributed(files_are_the_same, 1, tmp_path)
