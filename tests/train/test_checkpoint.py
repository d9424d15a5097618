"""A checkpoint resumes exactly in its own layout and loads in every other, model and optimizer."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.paths import MANIFEST, CheckpointError, Resume, latest, read_resume
from megatron_af.runs.whole import damage
from megatron_af.train import checkpoint, checkpoint_files
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.checkpoint_reading import load_parts
from megatron_af.train.checkpoint_writer import CheckpointWriter
from megatron_af.train.objectives.answer import Answer
from tests import tiny
from tests.distributed import RankError, run_distributed
from tests.train.saved_run import LAYOUTS, SAVED_AT, run

pytestmark = pytest.mark.slow

schedule = CheckpointWriter.schedule_async_call


@pytest.mark.parametrize("layout", ["DP2", "PP2xDP2+ZeRO-1", "TP2xPP2+SP"])
def test_resume_is_bitwise_exact_for_20_steps(layout: str, tmp_path: Path) -> None:
    world_size, parallel = LAYOUTS[layout]
    through = run_distributed(run, world_size, parallel, str(tmp_path), steps=SAVED_AT + 20, resume=False, timeout=240)[
        0
    ]
    resumed = run_distributed(run, world_size, parallel, str(tmp_path), steps=20, resume=True, timeout=240)[0]
    assert resumed == through[2 * SAVED_AT :]


def test_resume_is_bitwise_exact_in_bf16(tmp_path: Path) -> None:
    world_size, parallel = LAYOUTS["DP2+ZeRO-1"]
    arguments: dict[str, Any] = {"precision": "bf16", "timeout": 240}
    through = run_distributed(run, world_size, parallel, str(tmp_path), steps=8, resume=False, **arguments)[0]
    resumed = run_distributed(run, world_size, parallel, str(tmp_path), steps=5, resume=True, **arguments)[0]
    assert resumed == through[2 * SAVED_AT :]


def test_stage_without_trainables_is_saved_and_resumed(tmp_path: Path) -> None:
    """Only the rows of added tokens train: no pipeline stage of the decoder owns optimizer state."""
    world_size, parallel = LAYOUTS["PP2xDP2+ZeRO-1"]
    arguments: dict[str, Any] = {"trainable": ("added_rows",), "timeout": 180}
    through = run_distributed(run, world_size, parallel, str(tmp_path), steps=SAVED_AT + 2, resume=False, **arguments)[
        0
    ]
    resumed = run_distributed(run, world_size, parallel, str(tmp_path), steps=2, resume=True, **arguments)[0]
    assert resumed == through[2 * SAVED_AT :]


def test_asynchronous_save_holds_the_state_of_its_step(tmp_path: Path) -> None:
    world_size, parallel = LAYOUTS["DP2"]
    through = run_distributed(
        run, world_size, parallel, str(tmp_path), steps=SAVED_AT + 3, resume=False, asynchronous=True, timeout=180
    )[0]
    resumed = run_distributed(run, world_size, parallel, str(tmp_path), steps=3, resume=True, timeout=180)[0]
    assert resumed == through[2 * SAVED_AT :]


def filled(value: float) -> tuple[Any, process_groups.Groups]:
    """A tiny model with every weight at ``value``."""
    config = tiny.config()
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            parameter.fill_(value)
    return model, groups


def save(folder: Path, value: float, step: int, asynchronous: bool = False, sources: Any = None) -> Checkpoints:
    model, groups = filled(value)
    checkpoints = Checkpoints(folder, keep=1, asynchronous=asynchronous)
    resume = Resume(stage="stage", step=step, skipped=0, samples=step, world_size=1)
    checkpoints.save(model, None, groups, resume, sources or {}, Answer.parts)
    return checkpoints


def save_and_die(rank: int, world_size: int, folder: Path, value: float, step: int, at: int | str) -> None:
    """Die just before the ``at``-th change of a file or folder of :class:`Checkpoints`, or in the middle of a save."""
    calls = iter(range(100))

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == at:
                os._exit(9)
            return change(*args, **kwargs)

        return call

    if at == "data is written":
        FileSystemWriterAsync.finish = lambda *_: os._exit(9)  # type: ignore[method-assign]
    elif at == "half of the old one is removed":

        def half(folder: Path, **_: Any) -> None:
            if folder.exists():
                (folder / MANIFEST).unlink()
                os._exit(9)

        checkpoint.shutil = type("shutil", (), {"rmtree": staticmethod(half)})  # type: ignore[attr-defined]
    elif at == "the writer works":
        save(folder, value, step, asynchronous=True)
        os._exit(9)
    else:
        checkpoint.write = dying(checkpoint.write)  # type: ignore[attr-defined]
        Path.rename = dying(Path.rename)  # type: ignore[method-assign]
        checkpoint.shutil = type("shutil", (), {"rmtree": staticmethod(dying(shutil.rmtree))})  # type: ignore[attr-defined]
    save(folder, value, step).close()


def load(rank: int, world_size: int, folder: Path) -> tuple[int, set[float]]:
    """Step and values of the weights of the newest checkpoint."""
    model, groups = filled(-1.0)
    newest = latest(folder)
    assert newest is not None
    load_parts(model, groups, newest, Answer.parts)
    values = {value for _, parameter in model.named_parameters() for value in parameter.unique().tolist()}
    return read_resume(newest)["step"], values


@pytest.mark.parametrize("again", [False, True], ids=["a further step", "the same step again"])
def test_death_at_any_moment_leaves_a_whole_checkpoint(again: bool, tmp_path: Path) -> None:
    """The previous one, or once it is in place the new one; and the next save works."""
    run_distributed(save_and_die, 1, tmp_path, 1.0, 1, at="never")
    whole, value = {(1, 1.0)}, 2.0
    for at in ("half of the old one is removed", "data is written", "the writer works", *range(12)):
        step = 1 if again else int(value)
        whole.add((step, value))
        try:
            run_distributed(save_and_die, 1, tmp_path, value, step, at=at)
        except RankError as death:
            assert "ended with code 9" in str(death)
        else:
            break
        found_step, values = run_distributed(load, 1, tmp_path)[0]
        assert len(values) == 1 and (found_step, *values) in whole, (at, found_step, values)
        value += 1
    assert value >= 7, "not every boundary was met"
    assert run_distributed(load, 1, tmp_path)[0] == (step, {value})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", f"step_{step:08d}"]


def save_what_is_read(rank: int, world_size: int, folder: Path) -> None:
    """Over NFS a file that somebody reads keeps its folder from going."""
    save(folder, 1.0, 1).close()
    remove = shutil.rmtree
    shutil.rmtree = busy  # type: ignore[assignment]
    save(folder, 2.0, 2).close()
    shutil.rmtree = remove
    assert latest(folder) == folder / "step_00000002"
    save(folder, 3.0, 3).close()


def busy(folder: Path, **_: Any) -> None:
    raise OSError(errno.ENOTEMPTY, "Directory not empty", str(folder))


def test_an_old_checkpoint_that_cannot_be_removed_ends_nothing_and_goes_later(tmp_path: Path) -> None:
    run_distributed(save_what_is_read, 1, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000003"]


def save_in_vain(rank: int, world_size: int, folder: Path, asynchronous: bool, trouble: str) -> str:
    """A checkpoint that is whole, and one that cannot be written: what is told of it."""
    save(folder, 1.0, 1).close()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = checkpoint.write
    write_file = checkpoint_files._write_file

    def with_little_room(*args: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # the system then refuses each further byte
        return write_file(*args)

    if trouble == "tensors" and not asynchronous:
        checkpoint_files._write_file = with_little_room
    elif trouble == "manifest" and rank == 0:
        checkpoint.write = full  # type: ignore[attr-defined]
    CheckpointWriter.schedule_async_call = partialmethod(in_trouble, trouble)  # type: ignore[method-assign, assignment]
    try:
        save(folder, 2.0, 2, asynchronous).close()
    except CheckpointError as error:
        told = f"{error.exit_code}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        checkpoint.write = written  # type: ignore[attr-defined]
        checkpoint_files._write_file = write_file
    return told


def in_trouble(writer: CheckpointWriter, trouble: str, request: Any) -> None:
    """A writer that has little room, or is killed while it has work."""
    if trouble == "tensors":
        resource.prlimit(writer.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    if trouble == "writer":
        writer.process.send_signal(signal.SIGSTOP)
    schedule(writer, request)
    if trouble == "writer":
        writer.process.kill()


def full(path: Path, content: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize(
    ("trouble", "asynchronous"),
    [("tensors", False), ("tensors", True), ("manifest", False), ("manifest", True), ("writer", True)],
)
def test_what_cannot_be_written_is_one_sentence_on_all_ranks(trouble: str, asynchronous: bool, tmp_path: Path) -> None:
    """And leaves the checkpoint before, whole."""
    told = run_distributed(save_in_vain, 2, tmp_path, asynchronous, trouble)
    assert told[0] == told[1] and told[0].startswith("1: ") and "step_00000002.partial" in told[0]
    why = {
        "tensors": r"by rank \d \(\[Errno 27\] File too large\), [\d.e+]+ GiB were free",
        "manifest": "No space left",
        "writer": r"by rank \d \(the process that writes checkpoints ended with code -9\)",
    }
    assert re.search(why[trouble], told[0]), told[0]
    newest = latest(tmp_path)
    assert newest is not None and newest.name == "step_00000001" and damage(newest) == ""
    assert trouble == "manifest" or not list(tmp_path.glob("*.partial")), "its space is given back"


def save_through_a_stall(rank: int, world_size: int, folder: Path) -> tuple[str, float]:
    """For 30 s nothing of a checkpoint gets written: what is the newest then, and the longest that training waited."""
    save(folder, 1.0, 1).close()
    writers: list[Any] = []

    def stalling(writer: CheckpointWriter, request: Any) -> None:
        writer.process.send_signal(signal.SIGSTOP)  # what a write to a disk that does not answer does to it
        writers.append(writer.process)
        schedule(writer, request)

    CheckpointWriter.schedule_async_call = stalling  # type: ignore[method-assign]
    checkpoints, longest = save(folder, 2.0, 2, asynchronous=True), 0.0
    for _ in range(60):
        began = time.monotonic()
        checkpoints.poll()
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.5)
    newest = latest(folder)
    writers[0].send_signal(signal.SIGCONT)
    checkpoints.close()
    assert newest is not None
    return newest.name, longest


def test_a_disk_that_stalls_delays_a_checkpoint_and_not_training(tmp_path: Path) -> None:
    for newest, longest in run_distributed(save_through_a_stall, 2, tmp_path, timeout=300):
        assert newest == "step_00000001" and longest < 5
    after = latest(tmp_path)
    assert after is not None and after.name == "step_00000002" and damage(after) == ""


def lose_a_source(rank: int, world_size: int, folder: Path) -> None:
    save(folder / "lm", 3.0, 1).close()
    sources = {"lm": folder / "lm" / "step_00000001"}
    save(folder / "kept", 5.0, 1, sources=sources).close()
    shutil.rmtree(folder / "lm")
    save(folder / "lost", 5.0, 1, sources=sources).close()


def test_a_frozen_part_whose_checkpoint_is_gone_is_written_anew(tmp_path: Path) -> None:
    run_distributed(lose_a_source, 1, tmp_path)
    parts = [
        json.loads((tmp_path / name / "step_00000001/checkpoint.json").read_text())["parts"]["lm"]
        for name in ("kept", "lost")
    ]
    assert parts == ["../../lm/step_00000001", "."]
    assert run_distributed(load, 1, tmp_path / "lost")[0] == (1, {5.0})


def test_pruning_spares_what_a_later_stage_or_another_run_reads_from(tmp_path: Path) -> None:
    def write(where: str, **parts: str) -> Path:
        folder = tmp_path / where
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text(json.dumps({"resume": {}, "parts": parts}))
        return folder

    lm = [write(f"demo/lm/checkpoints/step_{step:08d}", lm=".") for step in range(1, 6)]
    write("demo/align/checkpoints/step_00000003", lm="../../../lm/checkpoints/step_00000001", xattn=".")
    write("other/tune/checkpoints/step_00000003", lm="../../../../demo/lm/checkpoints/step_00000003", xattn=".")
    Checkpoints(tmp_path / "demo/lm/checkpoints", keep=1)._prune(lm[-1])
    assert [path.exists() for path in lm] == [True, False, True, False, True]


def test_half_written_checkpoint_is_never_the_latest(tmp_path: Path) -> None:
    (tmp_path / "step_00000007.partial").mkdir()
    assert latest(tmp_path) is None
    (tmp_path / "latest").write_text("step_00000007")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        latest(tmp_path)


def test_missing_checkpoint_names_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="stage's `entry`"):
        read_resume(tmp_path / "nothing")
    manifest = {"resume": {"step": 4}, "parts": {}}
    (tmp_path / "checkpoint.json").write_text(json.dumps(manifest))
    assert read_resume(tmp_path)["step"] == 4


