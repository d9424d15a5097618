"""Digests identify contents, not places, and notice any change."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import StageConfig
from megatron_af.runs.digests import DigestMismatch, digest_tree, digest_value, record_digest, verify_digest


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_tree_has_the_same_digest_wherever_it_lies(tmp_path: Path) -> None:
    files = {"a.bin": "1", "sub/b.bin": "2"}
    one, two = tree(tmp_path / "one", files), tree(tmp_path / "two", dict(reversed(files.items())))
    assert digest_tree(one) == digest_tree(two)


@pytest.mark.parametrize(
    "changed",
    [{"a.bin": "2", "sub/b.bin": "2"}, {"a.bin": "1", "b.bin": "2"}, {"a.bin": "1"}],
    ids=["contents", "name", "missing"],
)
def test_any_change_changes_the_digest(tmp_path: Path, changed: dict[str, str]) -> None:
    before = digest_tree(tree(tmp_path / "before", {"a.bin": "1", "sub/b.bin": "2"}))
    assert digest_tree(tree(tmp_path / "after", changed)) != before


def test_recording_does_not_change_what_is_recorded_and_verification_notices_a_flip(tmp_path: Path) -> None:
    folder = tree(tmp_path, {"a.bin": "1"})
    digest = record_digest(folder)
    assert verify_digest(folder) == digest == verify_digest(folder, digest)
    (folder / "a.bin").write_text("2")
    with pytest.raises(DigestMismatch, match=digest):
        verify_digest(folder)


def test_nothing_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no files"):
        digest_tree(tmp_path)


def test_a_value_is_digested_by_its_contents() -> None:
    stage = StageConfig(blend={"a": 1.0, "b": 2.0})
    assert digest_value(stage) == digest_value(replace(stage, blend={"b": 2.0, "a": 1.0}))
    assert digest_value(stage) != digest_value(replace(stage, steps=stage.steps + 1))
