"""A hub cache as huggingface_hub keeps it, without a hub."""

from pathlib import Path


def hub_cache(folder: Path, name: str, files: dict[str, str]) -> None:
    """A repository as huggingface_hub keeps it: blobs, and links to them by name."""
    repository = folder / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    for number, (file, text) in enumerate(files.items()):
        (repository / f"blobs/{number}").write_text(text)
        (snapshot / file).symlink_to(f"../../blobs/{number}")
