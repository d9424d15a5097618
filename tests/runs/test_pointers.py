"""A part that lies elsewhere is these weights or none, wherever they were put meanwhile."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_af.runs.digests import DIGEST_FILE
from megatron_af.runs.paths import MANIFEST, CheckpointError
from megatron_af.runs.pointers import checkpoint_digest, is_pointed_at, source_of, verify
from megatron_af.runs.records import put_aside


def checkpoint(output: Path, stage: str, weights: str, *, run: str = "demo", step: int = 1) -> Path:
    folder = output / run / stage / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(weights)
    (folder / MANIFEST).write_text(json.dumps({"resume": {"step": step}, "parts": {"lm": "."}}))
    return folder.resolve()


def child(output: Path, parent: Path, *, run: str = "demo", digest: str = "") -> Path:
    folder = checkpoint(output, "align", "xattn", run=run)
    place = f"../../../../{parent.relative_to(output.resolve())}"
    digests = {"lm": digest or checkpoint_digest(parent)}
    manifest = {"resume": {}, "parts": {"xattn": ".", "lm": place}, "digests": digests}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_a_part_is_found_where_it_lies(tmp_path: Path) -> None:
    parent = checkpoint(tmp_path, "lm", "1")
    align = child(tmp_path, parent)
    assert source_of(align, "lm") == parent and source_of(align, "xattn") == align
    with pytest.raises(CheckpointError, match="holds xattn, lm but no encoder"):
        source_of(align, "encoder")


def test_a_parent_trained_again_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    parent = checkpoint(tmp_path, "lm", "1")
    align = child(tmp_path, parent)
    put_aside(tmp_path / "demo/lm")
    again = checkpoint(tmp_path, "lm", "2")
    checkpoint_digest(again)
    found = source_of(align, "lm")
    assert (found / "weights").read_text() == "1" and found != again

    put_aside(tmp_path / "demo/lm")  # a second time: what is pointed at stays, the other may go
    checkpoint(tmp_path, "lm", "3")
    assert (source_of(align, "lm") / "weights").read_text() == "1"
    put_aside(tmp_path / "demo/lm")
    assert sorted(path.name for path in (tmp_path / "demo").iterdir() if path.name != "align") == [
        "lm.replaced",
        "lm.replaced-2",
        "lm.replaced-3",
    ]


def test_weights_in_a_folder_at_the_root_that_is_gone_are_named(tmp_path: Path) -> None:
    align = checkpoint(tmp_path, "align", "xattn")
    manifest = {"resume": {}, "parts": {"lm": "/no_such_volume/step"}, "digests": {"lm": "sha256:1"}}
    (align / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="takes lm from /no_such_volume/step, which is gone"):
        source_of(align, "lm")


def test_weights_that_are_nowhere_are_named(tmp_path: Path) -> None:
    parent = checkpoint(tmp_path, "lm", "1")
    align = child(tmp_path, parent)
    shutil.rmtree(parent)
    with pytest.raises(CheckpointError, match=r"takes lm from .*, which is gone"):
        source_of(align, "lm")
    checkpoint(tmp_path, "lm", "2")
    with pytest.raises(CheckpointError, match="which holds other weights by now"):
        source_of(align, "lm")


def test_files_that_changed_since_are_refused(tmp_path: Path) -> None:
    parent = checkpoint(tmp_path, "lm", "1")
    verify(parent)
    assert (parent / DIGEST_FILE).is_file()
    verify(parent)
    (parent / "weights").write_text("flipped")
    with pytest.raises(CheckpointError, match="weights is not what was written; they changed since sha256:"):
        verify(parent)


def test_who_points_at_a_checkpoint(tmp_path: Path) -> None:
    parent, other = checkpoint(tmp_path, "lm", "1"), checkpoint(tmp_path, "lm", "2", step=2)
    checkpoint_digest(other)
    assert not is_pointed_at(parent, tmp_path)
    child(tmp_path, parent, run="another run")
    assert is_pointed_at(parent, tmp_path) and not is_pointed_at(other, tmp_path)
    put_aside(tmp_path / "demo/lm")
    moved = tmp_path / "demo/lm.replaced/checkpoints" / parent.name
    assert is_pointed_at(moved.resolve(), tmp_path), "by its digest, wherever it lies"


def test_put_aside_keeps_one_older_result(tmp_path: Path) -> None:
    for weights in "123":
        checkpoint(tmp_path, "lm", weights)
        put_aside(tmp_path / "demo/lm")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["lm.replaced"]
    assert (tmp_path / "demo/lm.replaced/checkpoints/step_00000001/weights").read_text() == "3"
