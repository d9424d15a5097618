"""What the process that writes is told and tells."""

import mmap
import os
import queue
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_af.train import checkpoint_files
from megatron_af.train.checkpoint_files import Place, note_of, serve, write_and_digest


def test_a_place_is_the_tensor_that_was_put_there() -> None:
    shared = os.memfd_create("test")
    os.ftruncate(shared, 4096)
    ours, theirs = mmap.mmap(shared, 4096), mmap.mmap(shared, 4096)
    for number, tensor in enumerate((torch.randn(3, 5).bfloat16(), torch.arange(4), torch.tensor(7.0))):
        place = Place(64 * number, tensor.dtype, tensor.shape)
        place.of(ours).copy_(tensor)
        assert torch.equal(place.of(theirs), tensor)


def test_an_error_of_the_system_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapped(bucket: Any) -> Any:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr(checkpoint_files, "_write_file", wrapped)
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    write_and_digest(tmp_path, 0, [("a", "a", ([], []))], results)
    assert str(results.get()) == "[Errno 28] No space left on device"
    assert not note_of(tmp_path, 0).exists()


@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("under_way", [False, True])
def test_a_writer_whose_training_is_killed_ends_without_a_word(tmp_path: Path, under_way: bool, unread: bool) -> None:
    """Also while an answer of it lies unread, and while it writes."""
    shared = os.memfd_create("test")
    os.ftruncate(shared, 4096)
    training, messages = Pipe()
    if unread:
        messages.send("what was not read")
    if under_way:
        training.send((tmp_path, 0, []))
    training.close()
    serve(shared, messages)
    assert note_of(tmp_path, 0).exists() == under_way
