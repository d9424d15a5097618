"""A checkpoint's pickles describe tensors or are refused: nothing that a file names is run."""

import contextlib
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from megatron_af.runs.paths import CheckpointError
from megatron_af.train.described_tensors import only_tensors


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def test_code_in_metadata_is_not_run(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    evil = [Runs(os.system, f"touch {planted}"), Runs(subprocess.call, ["touch", str(planted)]),
            Runs(eval, f"open({str(planted)!r}, 'w')"), Runs(getattr, torch.Size, "mro")]  # fmt: skip
    for what in evil:
        description = Metadata(state_dict_metadata={}, planner_data={"x": what})
        (tmp_path / ".metadata").write_bytes(pickle.dumps(description))
        refused = pytest.raises(CheckpointError, match=r"asks for (posix|subprocess|builtins)\.\w+, which describes no")
        with refused, only_tensors(tmp_path):
            pytest.fail("it was believed")
        assert not planted.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"hello", b"\x80\x04N.", os.urandom(200)])
def test_what_is_no_description_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.metadata"), only_tensors(tmp_path):
        pytest.fail("it was believed")


def test_a_place_far_away_is_not_made_room_for(tmp_path: Path) -> None:
    """At four bytes' largest, the room is 64 GiB."""
    whole = pickle.dumps(Metadata(state_dict_metadata={}), protocol=3)
    for place, told in ((1 << 20, "place 1,048,576 of"), (len(whole), "")):
        (tmp_path / ".metadata").write_bytes(whole[:-1] + b"r" + place.to_bytes(4, "little") + b".")
        refused = pytest.raises(CheckpointError, match=told) if told else contextlib.nullcontext()
        with refused, only_tensors(tmp_path):
            assert not told, "it was believed"


def test_small_objects_in_tensor_files_build_no_classes(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata(state_dict_metadata={})))
    file, planted = tmp_path / "object.pt", tmp_path / "planted"
    torch.save(Runs(os.system, f"touch {planted}"), file)
    before = dict(os.environ)
    with only_tensors(tmp_path), pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=False)  # as torch's own readers of checkpoints do
    assert not planted.exists() and dict(os.environ) == before
