"""A damaged checkpoint is found by its digest, named, put away, and the one before it takes its place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_af.runs.digests import DIGEST_FILE, record_digest
from megatron_af.runs.paths import BEST, LATEST, MANIFEST, CheckpointError, latest
from megatron_af.runs.whole import settle, unreadable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three whole checkpoints."""
    for step in (1, 2, 3):
        checkpoint = tmp_path / f"step_{step:08d}"
        checkpoint.mkdir()
        (checkpoint / MANIFEST).write_text(json.dumps({"resume": {"step": step}, "parts": {"lm": "."}}))
        for name in ("config.yaml", ".metadata", "__0_0.distcp", "__1_0.distcp"):
            (checkpoint / name).write_bytes(name.encode() * 100)
        record_digest(checkpoint)
        (tmp_path / LATEST).write_text(checkpoint.name)
    return tmp_path


def flip_one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


HARMS = {"missing": Path.unlink, "empty": empty, "cut": cut, "one bit": flip_one_bit}
FILES = [MANIFEST, "config.yaml", ".metadata", "__0_0.distcp", "__1_0.distcp"]


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize("name", FILES)
def test_the_one_before_is_used_and_the_file_is_named(folder: Path, name: str, harm: Callable[[Path], None]) -> None:
    newest = folder / "step_00000003"
    harm(newest / name)
    told: list[str] = []
    settle(folder, told.append)
    assert latest(folder) == folder / "step_00000002"
    (said,) = told
    assert name in said and said.endswith(f"going on from {folder / 'step_00000002'}")
    assert not newest.exists() and (folder / "step_00000003.damaged").is_dir()
    settle(folder, told.append)
    assert len(told) == 1, "it is told once"


@pytest.mark.parametrize("harm", [cut, flip_one_bit, empty])
def test_damaged_digests_are_damage(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder / "step_00000003" / DIGEST_FILE)
    told: list[str] = []
    settle(folder, told.append)
    assert latest(folder) == folder / "step_00000002" and DIGEST_FILE in told[0]


@pytest.mark.parametrize("content", [b"", b"step_00000009", b"../elsewhere", b"/", b"\xff\xfe", b"step_00000003\x00"])
def test_a_pointer_to_nothing_is_mended_by_the_newest_whole_checkpoint(folder: Path, content: bytes) -> None:
    elsewhere = folder.parent / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    shutil.copytree(folder / "step_00000001", elsewhere)
    (folder / LATEST).write_bytes(content)
    with pytest.raises(CheckpointError, match="latest names"):
        latest(folder)
    told: list[str] = []
    settle(folder, told.append)
    assert latest(folder) == folder / "step_00000003"
    assert len(told) == 1 and "latest names" in told[0]


def test_two_damaged_ones_are_passed_over(folder: Path) -> None:
    for step in (3, 2):
        cut(folder / f"step_{step:08d}" / "__1_0.distcp")
    told: list[str] = []
    settle(folder, told.append)
    assert latest(folder) == folder / "step_00000001" and told[0].count("__1_0.distcp is not what was written") == 2


def test_without_a_whole_one_nothing_is_touched_and_the_cure_is_told(folder: Path) -> None:
    for step in (1, 2, 3):
        (folder / f"step_{step:08d}" / "__0_0.distcp").unlink()
    before = sorted(folder.rglob("*"))
    whole = r"no checkpoint in .* is whole: .*__0_0.distcp is missing.*delete"
    with pytest.raises(CheckpointError, match=whole) as raised:
        settle(folder, print)
    assert raised.value.exit_code == 2 and sorted(folder.rglob("*")) == before


def test_whole_checkpoints_and_none_are_left_alone(folder: Path) -> None:
    told: list[str] = []
    settle(folder, told.append)
    settle(folder / "nothing", told.append)
    assert told == [] and latest(folder) == folder / "step_00000003"


def test_what_an_earlier_version_wrote_has_no_digest_and_is_taken(folder: Path) -> None:
    (folder / "step_00000003" / DIGEST_FILE).unlink()
    settle(folder, pytest.fail)
    assert latest(folder) == folder / "step_00000003"


@pytest.mark.parametrize(
    "manifest", ["{", "[]", "null", "{}", '{"resume": 3, "parts": {}}', '{"resume": {}, "parts": {}}']
)
def test_what_is_no_manifest_is_named(folder: Path, manifest: str) -> None:
    checkpoint = folder / "step_00000003"
    (checkpoint / MANIFEST).write_text(manifest)
    assert str(checkpoint / MANIFEST) in unreadable(checkpoint)


@pytest.mark.parametrize(("best", "stays"), [("step_00000003", False), ("step_00000001", True)])
def test_a_best_that_is_damaged_is_forgotten(folder: Path, best: str, stays: bool) -> None:
    (folder / BEST).write_text(best)
    cut(folder / "step_00000003" / "__0_0.distcp")
    settle(folder, lambda said: None)
    assert (folder / BEST).exists() == stays
