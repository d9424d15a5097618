"""Folders of tones, and what is understood of them."""

from pathlib import Path

from megatron_af.config import Config, DataConfig, DatasetConfig
from megatron_af.data.rows import Manifest, Row
from megatron_af.prepare.outcome import import_rows
from megatron_af.progress import silent
from megatron_af.start.layouts import understand
from megatron_af.start.tables import Found
from tests.data.toy import write_tone


def tones(folder: Path, *names: str) -> None:
    for place, name in enumerate(names):
        write_tone(folder / name, 0.2, place)


def look(tmp_path: Path) -> tuple[Found, dict[str, list[Row]]]:
    """How ``mine`` is understood, and the rows that come of it; nothing is written into it."""
    folder, root = tmp_path / "mine", tmp_path / "data"
    before = sorted(path for path in folder.rglob("*"))
    found = understand(folder, root)
    sets = {name: DatasetConfig(manifest=f"{name}.jsonl", origin=origin) for name, origin in found.origins.items()}
    config = Config(name="t", data=DataConfig(root=str(root), datasets=sets))
    assert import_rows(config, list(sets), silent()) == 0
    assert sorted(path for path in folder.rglob("*")) == before
    return found, {name: list(Manifest(root / f"{name}.jsonl")) for name in sets}


def classes(rows: list[Row]) -> list[str]:
    return [row.meta["class"] for row in rows]
