"""The code's version tells commits apart, and a changed checkout from a clean one."""

import subprocess
from pathlib import Path

import pytest

from megatron_af.runs import code
from megatron_af.runs.code import COMMIT, code_version, installed, source_revision


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in the place of this one, with the module where it lies."""
    module = tmp_path / "megatron_af/runs/code.py"
    module.parent.mkdir(parents=True)
    module.write_text("1")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "one")):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(code, "__file__", str(module))
    return tmp_path


def test_a_commit_and_what_was_changed_since(checkout: Path) -> None:
    commit, changed = source_revision()
    (checkout / "notes").touch()  # what git does not know changes nothing
    assert len(commit) == 40 and (commit, changed) == source_revision() == (commit, "no")
    assert code_version() == f"{installed('megatron-af')} ({commit[:7]})"
    (checkout / "megatron_af/runs/code.py").write_text("2")
    assert source_revision() == (commit, "yes")
    assert code_version().endswith(f"({commit[:7]}, changed)")


def test_without_a_checkout_the_version_is_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "__file__", str(tmp_path / "a/b/code.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv(COMMIT, raising=False)
    assert source_revision() == ("", "")
    assert code_version() == installed("megatron-af") != ""
    monkeypatch.setenv(COMMIT, "3e9cab5" + 33 * "0")
    assert code_version() == f"{installed('megatron-af')} (3e9cab5)" and source_revision()[1] == "no"
    monkeypatch.setenv(COMMIT, "3e9cab5" + 33 * "0" + "-dirty")
    assert code_version() == f"{installed('megatron-af')} (3e9cab5, changed)"
    assert installed("no-such-package") == ""
