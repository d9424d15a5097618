"""The data root: a folder or a store, never left, whose files appear whole."""

from pathlib import Path

import pytest

from megatron_af.data.storage import DataRoot, StorageError


def test_the_root_is_never_left(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path))
    root.write("a/b.bin", b"0123456789")
    assert root.read("a/b.bin", 2, 3) == b"234" and root.size("a/b.bin") == 10
    with pytest.raises(StorageError, match="ends at byte 10"):
        root.read("a/b.bin", 8, 5)
    for path in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(ValueError, match=r"inside data\.root"):
            root.read(path)


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_files_appear_whole_or_not_at_all(tmp_path: Path, kind: str) -> None:
    root = DataRoot(str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}/data")
    root.write("a/b.bin", b"0123456789")
    with pytest.raises(RuntimeError), root.writing("a/c.bin") as file:
        file.write(b"half")
        raise RuntimeError
    assert not root.exists("a/c.bin") and root.exists("a/b.bin")
    assert (root.read("a/b.bin"), root.read("a/b.bin", 3, 4), root.size("a/b.bin")) == (b"0123456789", b"3456", 10)
    assert root.fetch("a/b.bin").read_bytes() == b"0123456789"
    with pytest.raises(StorageError):
        root.read("a/b.bin", 8, 5)
    with pytest.raises(FileNotFoundError):
        root.fetch("a/c.bin")
    assert root.names("a") == ["b.bin"] and root.names("nowhere") == []
    root.remove("a/b.bin")
    root.remove("a/b.bin")
    assert not root.exists("a/b.bin")
    if kind == "folder":
        (tmp_path / "a/.b.bin.killed.draft").write_bytes(b"half")
        root.sweep("a")
        assert not list((tmp_path / "a").iterdir())
